// The records of a log of version 1: a line each (lines.ts), {"seq","kind","data"}, typed arrays in base64 (attributeCodec.ts). They are
// read; written is only the line that stands in place of what was dropped from such a file.

import { type Base64, decodeAttributes } from "../attributeCodec.ts";
import type { Json } from "../vocabulary.ts";
import { encodeLine, isWholeLine, jsonOf } from "./lines.ts";
import { type Dropped, guardRecord, type LogRecord } from "./logRecord.ts";

const base64: Pick<Base64, "decode"> = {
  decode: (text) => new Uint8Array(Buffer.from(text, "base64")), // a buffer of its own: the pool is neither aligned nor ours to keep
};

export const encodeDroppedLine = ({ seq, kind, data }: Dropped & { readonly seq: number }): Buffer => encodeLine({ seq, kind, data });

/** What a whole line says, without its newline; a span's attributes are left as they are written. @throws as guardRecord. */
export const outlineLine = (line: Buffer): LogRecord => guardRecord(JSON.parse(jsonOf(line)));

const SEQ_FIRST = /^\{"seq":(\d{1,16}),/;

/** The number of a record without decoding the rest of it; undefined for a damaged line. @throws as guardRecord. */
export const seqOfLine = (line: Buffer): number | undefined => {
  if (!isWholeLine(line)) return undefined;
  const found = SEQ_FIRST.exec(jsonOf(line, 32));
  return found ? Number(found[1]) : outlineLine(line).seq;
};

/** undefined for a damaged line. @throws as guardRecord; TraceError "corrupt" for arrays that are none. */
export const decodeLineRecord = (line: Buffer): LogRecord | undefined => {
  if (!isWholeLine(line)) return undefined;
  const record = outlineLine(line);
  if (record.kind !== "span") return record;
  const attributes = decodeAttributes(record.data.attributes as Record<string, Json>, base64, `log record ${record.seq}`);
  return { ...record, data: Object.freeze({ ...record.data, attributes: Object.freeze(attributes) }) };
};
