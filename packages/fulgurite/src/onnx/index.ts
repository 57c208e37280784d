// fulgurite/onnx: a policy that was trained here, deployed anywhere ONNX runs. Its own entry point: training never loads it.

export type { WeightType } from "./decoder.ts";
export { type OnnxModel, type OnnxOptions, onnxFolder } from "./folder.ts";
