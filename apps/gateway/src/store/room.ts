// Making room: rollouts that are to be forgotten, adapter versions that nothing needs, and their bytes off the disk.

import { compactFileStore } from "@fulgurite/trace/node";
import { collectGarbage } from "fulgurite";
import { answer, type Command, counted, megabytes, nothing, onReport, withStore } from "./command.ts";

export const forget: Command = {
  knows: ["json"],
  takes: { least: 1, most: Number.POSITIVE_INFINITY, what: "ids of rollouts" },
  run: async (folder, ids, { json }) => {
    const wasThere = await withStore(folder, (opened) => Promise.all(ids.map((id) => opened.forget(id))));
    const forgotten = ids.filter((_, index) => wasThere[index]);
    const unknown = ids.filter((_, index) => !wasThere[index]);
    if (json) answer({ forgotten, unknown });
    else process.stdout.write(`forgotten ${forgotten.length}, not there ${unknown.length}; run compact to give their room back\n`);
    return 0;
  },
};

export const gc: Command = {
  knows: ["keep", "dry-run", "json"],
  takes: nothing,
  run: async (folder, _rest, { keep, dryRun, json }) => {
    const { removed, kept, byteLength } = await withStore(folder, (opened) =>
      collectGarbage(opened, { dryRun, ...(keep === undefined ? {} : { keepLatest: keep }) }),
    );
    if (json) answer({ removed: removed.map(({ name, version }) => ({ name, version })), kept, byteLength, dryRun });
    else {
      for (const { name, version } of removed) process.stdout.write(`${name} ${version}\n`);
      process.stdout.write(
        `${dryRun ? "would delete" : "deleted"} ${counted(removed.length, "version")} (${megabytes(byteLength)}), kept ${kept}\n`,
      );
    }
    return 0;
  },
};

export const compact: Command = {
  knows: ["json"],
  takes: nothing,
  run: async (folder, _rest, { json }) => {
    const done = await compactFileStore(folder, { onReport });
    if (json) answer(done);
    else
      process.stdout.write(
        `dropped ${counted(done.records, "record")} of what is gone: ${megabytes(done.bytesBefore)} → ${megabytes(done.bytesAfter)}\n`,
      );
    return 0;
  },
};
