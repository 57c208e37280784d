// What a log file says.
//
//   file   = header, a line (lines.ts), then records: of version 1 lines (lineRecord.ts), of version 2 frames (frame.ts)
//   header = {"magic":"fulgurite-log","v":1|2,"firstSeq":n,"createdMs":ms,"mark":"<8 hex digits>"}    the mark of version 2
//
// Version 2 is written; files of version 1 are read for ever.

import { TraceError } from "../errors.ts";
import { decodeFrame, isFrame, outlineFrame, refillFrame } from "./frame.ts";
import { decodeLineRecord, outlineLine } from "./lineRecord.ts";
import { decodeLine, encodeLine, refillLine } from "./lines.ts";
import type { LogRecord } from "./logRecord.ts";

const LOG_MAGIC = "fulgurite-log";
const VERSIONS: readonly unknown[] = [1, 2];

export interface LogHeader {
  readonly v: 1 | 2;
  /** Of version 2. */
  readonly mark: number | undefined;
}

/** Its bytes, without a line's newline. undefined for damage. @throws TraceError "corrupt" for a whole record of no version. */
export const decodeRecord = (bytes: Buffer): LogRecord | undefined => (isFrame(bytes) ? decodeFrame(bytes) : decodeLineRecord(bytes));

/** What a whole record says; a span's attributes are left out or as they are written: they are most of the work. @throws as decodeRecord. */
export const decodeOutline = (bytes: Buffer): LogRecord => (isFrame(bytes) ? outlineFrame(bytes) : outlineLine(bytes));

/** Another record of the same kind and number in the bytes of one, which are then as many. Its JSON is no longer than theirs. */
export const refill = (bytes: Buffer, record: LogRecord): Buffer =>
  isFrame(bytes) ? refillFrame(bytes, record) : refillLine(bytes, record);

export const encodeHeader = (firstSeq: number, createdMs: number, mark: number | undefined): Buffer =>
  encodeLine({
    magic: LOG_MAGIC,
    v: mark === undefined ? 1 : 2,
    firstSeq,
    createdMs,
    ...(mark === undefined ? {} : { mark: mark.toString(16) }),
  });

/** undefined for a damaged line. @throws TraceError "corrupt" for another magic or version. */
export const decodeHeader = (line: Buffer, where: string): LogHeader | undefined => {
  const header = decodeLine(line) as { readonly magic?: unknown; readonly v?: unknown; readonly mark?: unknown } | null | undefined;
  if (header === undefined) return undefined;
  if (header?.magic !== LOG_MAGIC || !VERSIONS.includes(header.v))
    throw new TraceError(
      "corrupt",
      `${where}: a log of magic ${LOG_MAGIC}, v ${VERSIONS.join(" or ")}, got magic ${header?.magic}, v ${header?.v}; open it with the release that wrote it`,
    );
  return { v: header.v as 1 | 2, mark: header.v === 2 ? Number.parseInt(String(header.mark), 16) : undefined };
};
