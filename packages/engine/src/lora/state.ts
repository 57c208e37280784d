// A training state as one safetensors file: parameters, both moments, Adam's step. Restoring it continues the run bit for bit.
//
//   metadata   fulgurite.state "1" · rank · alpha · adamStep
//   tensors    <PEFT name>.p, .m, .v of every lora_A and lora_B, F32
//
// Gradients that wait for a step are not part of it: save between steps.

import * as z from "zod/mini";
import { EngineError } from "../errors.ts";
import { LINEARS, type LoraSpec } from "../model/spec.ts";
import type { LoraTensors } from "../model/tensors.ts";
import { sizeOf, type Tensor } from "../plan/step.ts";
import { checkShape } from "../schema.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../weights/safetensors.ts";
import { partOf } from "./init.ts";
import { peftName } from "./peft.ts";

const FILE = "training state";
const VERSION = "1";
const PLANES = ["p", "m", "v"] as const;

/** Values of the three flat buffers (same layout) and the number of optimiser steps taken. */
export interface TrainingState {
  readonly p: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
  readonly adamStep: number;
}

/** Every A and B with its name, in the order of the layout. */
const entries = (layout: LoraTensors): { name: string; view: Tensor }[] =>
  layout.layers.flatMap((layer, i) =>
    LINEARS.flatMap((linear) => [
      { name: peftName(i, linear, "A"), view: layer[linear].a },
      { name: peftName(i, linear, "B"), view: layer[linear].b },
    ]),
  );

export const saveState = (state: TrainingState, layout: LoraTensors, lora: LoraSpec): Uint8Array<ArrayBuffer> =>
  writeSafetensors(
    entries(layout).flatMap(({ name, view }) =>
      PLANES.map((plane) => ({ name: `${name}.${plane}`, shape: view.shape, data: partOf(state[plane], view) })),
    ),
    { "fulgurite.state": VERSION, rank: `${lora.rank}`, alpha: `${lora.alpha}`, adamStep: `${state.adamStep}` },
  );

const metadataSchema = z.object({
  rank: z.coerce.number().check(z.int(), z.positive()),
  alpha: z.coerce.number().check(z.positive()),
  adamStep: z.coerce.number().check(z.int(), z.nonnegative()),
});

/** Throws EngineError("bad-file") for anything that is not the state of an adapter of this layout, rank and alpha. */
export const loadState = (bytes: Uint8Array, layout: LoraTensors, lora: LoraSpec): TrainingState => {
  const bad = (rule: string, got: string, advice: string): EngineError =>
    new EngineError("bad-file", `${FILE}: ${rule}, got ${got}; ${advice}`);
  const { tensors, metadata } = readSafetensors(bytes, FILE);
  const version = metadata["fulgurite.state"];
  if (version !== VERSION) throw bad(`its metadata has fulgurite.state ${VERSION}`, version ?? "none", "pass what saveState returned");
  const { data, issue } = checkShape(metadataSchema, metadata);
  if (issue) throw bad("its metadata has rank, alpha and adamStep", JSON.stringify(metadata), "pass what saveState returned");
  const { rank, alpha, adamStep } = data;
  if (rank !== lora.rank || alpha !== lora.alpha)
    throw bad(`rank / alpha are the policy's, ${lora.rank} / ${lora.alpha}`, `${rank} / ${alpha}`, "create the policy with those");

  const wanted = entries(layout);
  const state = {
    p: new Float32Array(sizeOf(layout.flat)),
    m: new Float32Array(sizeOf(layout.flat)),
    v: new Float32Array(sizeOf(layout.flat)),
    adamStep,
  };
  if (tensors.size !== wanted.length * PLANES.length)
    throw bad(`it has ${wanted.length * PLANES.length} tensors`, `${tensors.size}`, "it belongs to another base model");
  for (const { name, view } of wanted) {
    for (const plane of PLANES) {
      const stored = tensors.get(`${name}.${plane}`);
      if (stored?.dtype !== "F32" || stored.shape.length !== 2 || stored.shape.some((size, axis) => size !== view.shape[axis]))
        throw bad(
          `${name}.${plane} is F32 [${view.shape}]`,
          stored ? `${stored.dtype} [${stored.shape}]` : "none",
          "it belongs to another base model",
        );
      partOf(state[plane], view).set(toFloat32(stored, FILE));
    }
  }
  return state;
};
