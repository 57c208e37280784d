// What `npm i fulgurite` gives: a few functions with good defaults. Everything else is one package name further.

export type { Agent, AgentContext, OpenAIOptions } from "@fulgurite/agent";

export {
  type DeviceKind,
  describeMemory,
  type FileToWrite,
  type LoraSpec,
  type PeftFiles,
  type Policy,
  type PolicyMemory,
  PRECISIONS,
  type Precision,
  WEIGHT_FORMATS,
  type WeightFormat,
} from "@fulgurite/engine";

export { type Algorithm, type Evaluation, type GrpoOptions, grpo, reinforce, rloo, type StepReport } from "@fulgurite/rl";
export { asOnlyTrainer, type Store } from "@fulgurite/trace";
export { collectGarbage } from "./collectGarbage.ts";
export { type EvaluateOptions, evaluate } from "./evaluate.ts";
export {
  type Demo,
  type ExperimentOptions,
  type ExperimentRecord,
  experiment,
  type Phase,
  type Recipe,
  type RolloutProgress,
  readExperiment,
  type Score,
} from "./experiment.ts";
export { EXPORT_FORMATS, type ExportDtype, type ExportFormat, type ExportOptions, exportModel } from "./exportModel.ts";
export { type LoadedPolicy, type LoadPolicyOptions, loadPolicy } from "./loadPolicy.ts";
export { type LoadProgress, type ModelFiles, readModel } from "./modelFiles.ts";
export { type OpenStoreOptions, openStore } from "./openStore.ts";
export { type SelfTestEntry, type SelfTestOptions, type SelfTestReport, testGpu } from "./testGpu.ts";
export { type TrainOptions, train } from "./train.ts";
