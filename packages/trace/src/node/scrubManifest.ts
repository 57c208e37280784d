// The manifest, of which nothing may remain that was forgotten since it was written (scrub.ts). It says how the log stood then, and
// goes on to: its lines keep their lengths, and only what they tell of those who are gone is overwritten.

import { readFile } from "node:fs/promises";
import { isMissing, withFile } from "./durable.ts";
import { decodeLine, NEWLINE, refillLine } from "./lines.ts";
import type { FilePart, LogIo } from "./logFile.ts";
import type { LogIndex } from "./logIndex.ts";
import { decodeManifest, encodeManifest, type ManifestLine } from "./manifest.ts";
import { emptiedAttempt, emptiedResource, emptiedRollout } from "./scrub.ts";
import { ofResource, ofRollout } from "./segmentFile.ts";

const emptiedLine = (line: ManifestLine): ManifestLine => {
  if (line.kind === "segment") return line;
  if (line.kind === "resource") return { kind: "resource", data: emptiedResource(line.data) };
  const { rollout, attempts } = line.data;
  return { kind: "rollout", data: { rollout: emptiedRollout(rollout), attempts: attempts.map(emptiedAttempt) } };
};

const ownerOfLine = (line: ManifestLine | { readonly kind?: undefined }): string | undefined =>
  line.kind === "rollout" ? ofRollout(line.data.rollout.id) : line.kind === "resource" ? ofResource(line.data) : undefined;

interface Range {
  readonly position: number;
  readonly byteLength: number;
}

/** Whom it knows, and where it tells of them. */
export type Known = ReadonlyMap<string, Range>;

const readManifestBytes = (path: string): Promise<Buffer> =>
  readFile(path).catch((error) => {
    if (!isMissing(error)) throw error;
    return Buffer.alloc(0);
  });

export const knownIn = async (path: string): Promise<Known> => {
  const bytes = await readManifestBytes(path);
  const known = new Map<string, Range>();
  for (let position = 0, end = bytes.indexOf(NEWLINE); end >= 0; position = end + 1, end = bytes.indexOf(NEWLINE, position)) {
    const line = decodeLine(bytes.subarray(position, end)) as ManifestLine | undefined;
    const owner = line && ownerOfLine(line);
    if (owner !== undefined) known.set(owner, { position, byteLength: end - position });
  }
  return known;
};

/** What it says of those who are gone is overwritten. @throws the platform's errors. */
export const scrubManifest = async (path: string, io: LogIo, { remains }: LogIndex, known: Known): Promise<void> => {
  const ranges = [...remains.keys()].flatMap((owner) => known.get(owner) ?? []);
  if (ranges.length === 0) return;
  const parts: FilePart[] = [];
  await withFile(path, "r", async (handle) => {
    for (const { position, byteLength } of ranges) {
      const line = Buffer.alloc(byteLength);
      await handle.read(line, 0, byteLength, position);
      const said = decodeLine(line) as ManifestLine | undefined;
      const bytes = said && refillLine(line, emptiedLine(said));
      if (bytes && !bytes.equals(line)) parts.push({ position, bytes });
    }
  });
  if (parts.length > 0) await io.overwrite(path, parts);
};

/** It gets the checks that the segments have now. @throws the platform's errors. */
export const recheckManifest = async (path: string, io: LogIo, { segments }: LogIndex): Promise<void> => {
  const manifest = decodeManifest(await readManifestBytes(path));
  if (manifest === undefined) return;
  const checks = new Map(segments.map(({ name, check }) => [name, check]));
  const rechecked = manifest.segments.map((segment) => ({ ...segment, check: checks.get(segment.name) ?? segment.check }));
  await io.replace(path, encodeManifest({ ...manifest, segments: rechecked }));
};
