// What a caller calls a model → where each of its files lies. Names only: nothing is read here.
//
//   spark                        the built-in model
//   ./models/smol, models/smol   a folder: in Node a path, in a browser relative to the page
//   https://host/models/smol     a folder
//   owner/repo, owner/repo@rev   a repository of the hub: {hub}/{owner}/{repo}/resolve/{revision}/{file}

import { EngineError } from "@fulgurite/engine";
import { sparkFiles } from "@fulgurite/spark";

export const DEFAULT_HUB = "https://huggingface.co";

export interface ModelSource {
  readonly kind: "spark" | "folder" | "hub";
  /** Hub name or address, as an adapter's base is called; absent where the name means nothing elsewhere. */
  readonly name?: string;
  /** The commit, where the caller named one. */
  readonly commit?: string;
  /** Undefined: the built-in model has no such file. `commit`: that of the hub's first answer. */
  urlOf(file: string, commit?: string): URL | undefined;
  /** What the file is called in a cache; undefined: files of this source are not cached. */
  cacheNameOf(file: string): string | undefined;
}

/** owner/repo, optionally @revision. Anything with a dot in front, a slash behind or another slash is a path. */
const HUB_NAME = /^([a-z0-9][\w.-]*)\/([a-z0-9][\w.-]*?)(?:@([^\s@]+))?$/i;
const COMMIT = /^[0-9a-f]{40}$/;

export const isCommit = (text: string): boolean => COMMIT.test(text);
export const isHubName = (source: string): boolean => HUB_NAME.test(source);

const spark: ModelSource = {
  kind: "spark",
  urlOf: (file) => (sparkFiles as Readonly<Record<string, URL>>)[file],
  cacheNameOf: () => undefined,
};

/** `folder` ends with a slash. */
const folderSource = (folder: URL): ModelSource => {
  if (folder.protocol === "file:") return { kind: "folder", urlOf: (file) => new URL(file, folder), cacheNameOf: () => undefined };
  if (folder.protocol !== "http:" && folder.protocol !== "https:")
    throw new EngineError("bad-request", `loadPolicy: a model's address begins with http: or https:, got ${folder}; use one of these`);
  // The page's or server's secrets do not belong into adapters: https://user:password@host
  const name = `${folder.origin}${folder.pathname}`;
  return { kind: "folder", name, urlOf: (file) => new URL(file, folder), cacheNameOf: (file) => `${name}${file}` };
};

const hubSource = (source: string, hub: URL): ModelSource => {
  const [, owner, repo, revision = "main"] = HUB_NAME.exec(source)!;
  const root = hub.href.endsWith("/") ? hub.href : `${hub.href}/`;
  return {
    kind: "hub",
    name: `${owner}/${repo}`,
    ...(isCommit(revision) && { commit: revision }),
    // a branch may have a slash in its name: refs/pr/1
    urlOf: (file, commit) => new URL(`${root}${owner}/${repo}/resolve/${encodeURIComponent(commit ?? revision)}/${file}`),
    cacheNameOf: (file) => `${root}${owner}/${repo}@${revision}/${file}`,
  };
};

/** `folder`: the address that `source` is as a path; `isLocal`: a folder is there on this machine, which wins over a hub name. */
export const toModelSource = (
  source: string,
  { hub = DEFAULT_HUB, folder, isLocal }: { readonly hub?: string; readonly folder: URL; readonly isLocal: boolean },
): ModelSource => {
  if (source === "spark") return spark;
  if (isLocal || !isHubName(source)) return folderSource(folder);
  if (!/^https?:\/\//i.test(hub))
    throw new EngineError("bad-request", `loadPolicy: hub is an address that begins with http: or https:, got ${hub}; try ${DEFAULT_HUB}`);
  return hubSource(source, new URL(hub));
};
