// A disk that fails when told to.
import type { FileHandle } from "node:fs/promises";
import { type LogIo, platformIo } from "@fulgurite/trace/node";

/** What the disk does instead of its work, and what the caller hears. */
export type DiskFault =
  | { readonly call: "write"; readonly landed: "nothing" | "half" | "all" | "zeros"; readonly code: string }
  | { readonly call: "datasync"; readonly unsynced: "dropped" | "kept"; readonly code: string };

const failure = (code: string): Error => Object.assign(new Error(`${code}: injected`), { code });

const isWrite = (fault: DiskFault | undefined): fault is DiskFault & { call: "write" } => fault?.call === "write";
const isSync = (fault: DiskFault | undefined): fault is DiskFault & { call: "datasync" } => fault?.call === "datasync";

/** `faultAt` is asked at every call, from 1; a fault of the other kind of call does not fire. */
export const createFailingIo = (
  faultAt: (call: number) => readonly DiskFault[],
): { io: LogIo; calls: () => number; fired: () => number } => {
  let call = 0;
  let fired = 0;
  const synced = new Map<number, number>();
  /** By descriptor: what stood where something was written since the last sync. */
  const unsynced = new Map<number, { readonly position: number; readonly bytes: Buffer }[]>();
  const noteUnsynced = async (handle: FileHandle, position: number, length: number): Promise<void> => {
    const { bytesRead, buffer } = await handle.read(Buffer.alloc(length), 0, length, position);
    unsynced.set(handle.fd, [...(unsynced.get(handle.fd) ?? []), { position, bytes: buffer.subarray(0, bytesRead) }]);
  };
  const dropUnsynced = async (handle: FileHandle): Promise<void> => {
    for (const { position, bytes } of (unsynced.get(handle.fd) ?? []).reverse()) await handle.write(bytes, 0, bytes.length, position);
    await handle.truncate(synced.get(handle.fd) ?? 0);
  };
  const io: LogIo = {
    ...platformIo,
    write: async (handle, bytes, position) => {
      call += 1;
      const fault = faultAt(call).find(isWrite);
      await noteUnsynced(handle, position, bytes.length);
      const share = { nothing: 0, half: bytes.length >> 1, all: bytes.length, zeros: bytes.length }[fault?.landed ?? "all"];
      if (share > 0) await handle.write(fault?.landed === "zeros" ? new Uint8Array(share) : bytes, 0, share, position);
      if (fault === undefined) return;
      fired += 1;
      throw failure(fault.code);
    },
    datasync: async (handle) => {
      call += 1;
      const fault = faultAt(call).find(isSync);
      if (fault !== undefined) {
        fired += 1;
        if (fault.unsynced === "dropped") await dropUnsynced(handle);
        throw failure(fault.code);
      }
      await handle.datasync();
      unsynced.delete(handle.fd);
      synced.set(handle.fd, (await handle.stat()).size);
    },
    lengthen: async (path, from, byteLength) => {
      call += 1;
      const fault = faultAt(call)[0];
      const share = fault?.call === "write" && fault.landed === "half" ? byteLength >> 1 : fault === undefined ? byteLength : 0;
      if (share > 0) await platformIo.lengthen(path, from, share);
      if (fault === undefined) return;
      fired += 1;
      throw failure(fault.code);
    },
  };
  return { io, calls: () => call, fired: () => fired };
};
