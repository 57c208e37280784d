// What the files of a resource must be: name → length and SHA-256. Made when a resource is published or adopted, looked at
// whenever its bytes are read: bytes that are not those are an error, never an answer.

import { TraceError } from "./errors.ts";
import { sha256, sha256Sync } from "./sha256.ts";
import type { Manifest, Resource } from "./vocabulary.ts";

type Files = Resource["files"];

/** Key order does not matter. */
const sorted = (entries: [string, Manifest[string]][]): Manifest =>
  Object.freeze(Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, digest]) => [path, Object.freeze(digest)])));

export const manifestOf = async (files: Files): Promise<Manifest> =>
  sorted(
    await Promise.all(
      Object.entries(files).map(
        async ([path, bytes]): Promise<[string, Manifest[string]]> => [path, { sha256: await sha256(bytes), byteLength: bytes.length }],
      ),
    ),
  );

/** Where nothing may be awaited. */
export const manifestOfSync = (files: Files): Manifest =>
  sorted(Object.entries(files).map(([path, bytes]) => [path, { sha256: sha256Sync(bytes), byteLength: bytes.length }]));

/** The resource with its manifest; one that came without (an older release wrote it) gets that of its bytes. @throws TraceError "corrupt". */
export const withManifest = async (
  resource: Omit<Resource, "manifest"> & { readonly manifest?: Manifest },
  where: string,
): Promise<Resource> => {
  const manifest = await manifestOf(resource.files);
  const expected = resource.manifest ?? manifest;
  for (const path of new Set([...Object.keys(expected), ...Object.keys(manifest)])) {
    const [wanted, got] = [expected[path], manifest[path]];
    if (wanted?.sha256 === got?.sha256) continue;
    const told = (digest: Manifest[string] | undefined): string =>
      digest === undefined ? "no file" : `${digest.byteLength} bytes of SHA-256 ${digest.sha256}`;
    throw new TraceError(
      "corrupt",
      `${where}: resource ${resource.name} ${resource.version}: ${path} is ${told(wanted)}, got ${told(got)}; publish it again from a copy`,
    );
  }
  return Object.freeze({ ...resource, manifest });
};
