// ONNX messages as protobuf bytes: the few that a graph needs. A writer of our own, since weights are streamed: a message is a list
// of parts whose lengths are known before their bytes exist, which no protobuf library offers. It reads nothing.
//
// Sources: protobuf.dev/programming-guides/encoding (varints, tags, length-delimited fields) · onnx/onnx.proto3 (field numbers).

/** Bytes, or a promise of so many bytes. */
export type Part = Uint8Array<ArrayBuffer> | { readonly byteLength: number; readonly make: () => Uint8Array<ArrayBuffer> };

/** The fields of a message, encoded, in order. */
export interface Message {
  readonly byteLength: number;
  readonly parts: readonly Part[];
}

/** Base 128, lowest group first; a negative int64 takes ten bytes. */
const varint = (value: number): Uint8Array<ArrayBuffer> => {
  let rest = BigInt.asUintN(64, BigInt(value));
  const bytes: number[] = [];
  while (rest > 127n) {
    bytes.push(Number(rest & 127n) | 128);
    rest >>= 7n;
  }
  return Uint8Array.of(...bytes, Number(rest));
};

const join = (parts: readonly Part[]): Message => ({ byteLength: parts.reduce((sum, part) => sum + part.byteLength, 0), parts });

/** One message of many fields. */
export const message = (...fields: readonly Message[]): Message => join(fields.flatMap(({ parts }) => parts));

const tag = (field: number, wireType: 0 | 2 | 5): Uint8Array<ArrayBuffer> => varint(field * 8 + wireType);

/** int32, int64, enum. */
export const int = (field: number, value: number): Message => join([tag(field, 0), varint(value)]);

export const float = (field: number, value: number): Message => join([tag(field, 5), new Uint8Array(Float32Array.of(value).buffer)]);

/** bytes, string, or a message inside a message. */
export const nested = (field: number, { byteLength, parts }: Message): Message => join([tag(field, 2), varint(byteLength), ...parts]);

export const bytes = (field: number, part: Part): Message => nested(field, join([part]));

export const text = (field: number, value: string): Message => bytes(field, new TextEncoder().encode(value));

/** TensorProto.DataType. */
export const DATA_TYPE = { FLOAT: 1, INT64: 7, BOOL: 9, FLOAT16: 10 } as const;
export type DataType = keyof typeof DATA_TYPE;

export type Attribute = number | readonly number[] | { readonly float: number };

/** AttributeProto: name 1, f 2, i 3, ints 8, type 20 (FLOAT 1, INT 2, INTS 7). */
const attribute = (name: string, value: Attribute): Message => {
  if (typeof value === "number") return message(text(1, name), int(3, value), int(20, 2));
  if ("float" in value) return message(text(1, name), float(2, value.float), int(20, 1));
  return message(text(1, name), ...value.map((item) => int(8, item)), int(20, 7));
};

export interface Node {
  readonly op: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

/** NodeProto: input 1, output 2, name 3, op_type 4, attribute 5. */
export const node = ({ op, inputs, outputs, attributes = {} }: Node): Message =>
  message(
    ...inputs.map((name) => text(1, name)),
    ...outputs.map((name) => text(2, name)),
    text(3, `${op}/${outputs[0]}`),
    text(4, op),
    ...Object.entries(attributes).map(([name, value]) => nested(5, attribute(name, value))),
  );

export interface Initializer {
  readonly name: string;
  readonly type: DataType;
  readonly shape: readonly number[];
  /** Little-endian, row-major. */
  readonly data: Part;
}

/** Where the data of an initializer lies outside the model's file. */
export interface External {
  readonly location: string;
  readonly offset: number;
}

/** TensorProto: dims 1, data_type 2, name 8, raw_data 9, external_data 13 (StringStringEntryProto: key 1, value 2), data_location 14 (EXTERNAL 1). */
export const tensor = ({ name, type, shape, data }: Initializer, external?: External): Message => {
  const head = [...shape.map((size) => int(1, size)), int(2, DATA_TYPE[type]), text(8, name)];
  if (!external) return message(...head, bytes(9, data));
  const entries = { location: external.location, offset: external.offset, length: data.byteLength };
  return message(
    ...head,
    ...Object.entries(entries).map(([key, value]) => nested(13, message(text(1, key), text(2, `${value}`)))),
    int(14, 1),
  );
};

export interface Value {
  readonly name: string;
  readonly type: DataType;
  /** A name for a size that a run decides. */
  readonly shape: readonly (number | string)[];
}

/** ValueInfoProto: name 1, type 2. TypeProto: tensor_type 1. Tensor: elem_type 1, shape 2. Shape: dim 1. Dimension: dim_value 1, dim_param 2. */
export const value = ({ name, type, shape }: Value): Message => {
  const dims = shape.map((size) => nested(1, typeof size === "number" ? int(1, size) : text(2, size)));
  return message(text(1, name), nested(2, nested(1, message(int(1, DATA_TYPE[type]), nested(2, message(...dims))))));
};

export interface Graph {
  readonly name: string;
  readonly nodes: readonly Node[];
  readonly initializers: readonly Initializer[];
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
}

/** ai.onnx 17 with IR 8 (ONNX 1.12): the newest that every ONNX Runtime of the last years reads. */
const [IR_VERSION, OPSET] = [8, 17];

/**
 * ModelProto: ir_version 1, producer_name 2, graph 7, opset_import 8 (OperatorSetIdProto: domain 1, version 2).
 * GraphProto: node 1, name 2, initializer 5, input 11, output 12.
 */
export const model = (
  { name, nodes, initializers, inputs, outputs }: Graph,
  externalOf: (initializer: Initializer) => External | undefined,
): Message => {
  const graph = message(
    ...nodes.map((one) => nested(1, node(one))),
    text(2, name),
    ...initializers.map((one) => nested(5, tensor(one, externalOf(one)))),
    ...inputs.map((one) => nested(11, value(one))),
    ...outputs.map((one) => nested(12, value(one))),
  );
  return message(int(1, IR_VERSION), text(2, "fulgurite"), nested(7, graph), nested(8, message(text(1, ""), int(2, OPSET))));
};

/** The bytes of each part, made as they are asked for. */
export function* bytesOf({ parts }: Message): Iterable<Uint8Array<ArrayBuffer>> {
  for (const part of parts) yield "make" in part ? part.make() : part;
}
