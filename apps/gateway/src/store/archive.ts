// A whole store out of its folder as one archive, and an archive into a folder.

import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { rename, unlink } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { exportStore, importStore } from "@fulgurite/trace";
import { UsageError } from "../usageError.ts";
import { answer, type Command, nothing, say, withStore } from "./command.ts";

export const exporting: Command = {
  knows: ["out"],
  takes: nothing,
  run: (folder, _rest, { out }) =>
    withStore(folder, async (opened) => {
      const archive = Readable.fromWeb(exportStore(opened) as Parameters<typeof Readable.fromWeb>[0]);
      if (out === undefined) {
        try {
          await pipeline(archive, process.stdout, { end: false });
          return 0;
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
          say("store: the reader of the archive left before its end; what it has is not whole");
          return 1;
        }
      }
      const partial = `${out}.tmp`;
      try {
        await pipeline(archive, createWriteStream(partial, { flush: true }));
        await rename(partial, out);
      } catch (error) {
        await unlink(partial).catch(() => {}); // the first error is the one to tell
        throw error;
      }
      return 0;
    }),
};

export const importing: Command = {
  knows: ["in", "json"],
  takes: nothing,
  makesFolder: true,
  run: async (folder, _rest, { in: from, json }) => {
    if (from !== undefined && !existsSync(from)) throw new UsageError(`store: --in is an archive, got no file ${from}`);
    const source = Readable.toWeb(from === undefined ? process.stdin : createReadStream(from)) as ReadableStream<Uint8Array>;
    const report = await withStore(folder, (opened) => importStore(opened, source));
    if (json) answer(report);
    else {
      const line = (name: "added" | "known" | "different"): string =>
        `${name.padEnd(10)} ${Object.entries(report[name])
          .map(([what, count]) => `${count} ${what}`)
          .join(", ")}\n`;
      process.stdout.write(line("added") + line("known") + line("different"));
      for (const example of report.examples) say(`different: ${example} (the store's own was kept)`);
    }
    return 0;
  },
};
