// The reference executor: every step as a plain f64 loop on the host. It is the specification that wasm/ and webgpu/ are
// judged against, so it prefers the formula to speed; it refuses to be fast. It is also unforgiving on purpose: the arena
// is filled with NaN before each run, so that a plan that reads what it has not written shows it.

import type { DeviceInfo } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { type Arena, planArena } from "../plan/arena.ts";
import type { Backend, Executable, HostArray, TensorData } from "../plan/backend.ts";
import { checkAllocate, checkFill } from "../plan/checkAllocate.ts";
import { type OpName, operandsOf, type Plan, type Step, sizeOf, type Tensor, type Vars } from "../plan/step.ts";
import { byteLengthOf, isPacked, unpack } from "../weights/formats.ts";
import type { Operation, Operations, Values, ValuesOf } from "./operation.ts";
import { attentionOperations } from "./ops/attention.ts";
import { headOperations } from "./ops/head.ts";
import { linearOperations } from "./ops/linear.ts";
import { optimizerOperations } from "./ops/optimizer.ts";
import { rowOperations } from "./ops/rows.ts";

const OPERATIONS: Operations<OpName> = {
  ...linearOperations,
  ...rowOperations,
  ...attentionOperations,
  ...headOperations,
  ...optimizerOperations,
};

/** Runs one step on host numbers. */
export const runStep = (step: Step, valuesOf: ValuesOf, vars: Vars): void => {
  // The table is complete and keyed by op; TypeScript cannot tie the union's member to its entry.
  (OPERATIONS[step.op] as Operation<OpName>)(step as never, valuesOf, vars);
};

export interface ReferenceBackend extends Backend {
  /** The live numbers of a weights, state, kv or io tensor, in f64 (weights: f32); what finite differences poke and peek. */
  values(tensor: Tensor): Values;
}

const storageFor = (tensor: Tensor): Values => {
  if (tensor.dtype === "i32") return new Int32Array(sizeOf(tensor));
  return tensor.home === "weights" ? new Float32Array(sizeOf(tensor)) : new Float64Array(sizeOf(tensor));
};

const parentOf = (tensor: Tensor): Tensor => tensor.view?.of ?? tensor;

export const createReferenceBackend = (): ReferenceBackend => {
  const device: DeviceInfo = { kind: "reference", description: "Reference, f64 loops" };
  const storage = new Map<Tensor, Values>();
  /** Packed weights that nobody has read yet: they may still be filled. Dequantised once: what the other executors do at every read. */
  const unread = new Map<Tensor, Uint32Array>();
  /** How many executables use an io tensor; at none its storage is freed. */
  const ioUsers = new Map<Tensor, number>();
  let arenaValues = new Float64Array(0);
  let isDisposed = false;

  const checkAlive = (where: string): void => {
    if (isDisposed) throw new EngineError("disposed", `${where}: the backend was disposed; create another one`);
  };

  const values = (tensor: Tensor): Values => {
    checkAlive("values");
    const words = unread.get(tensor);
    if (words) {
      storage.set(tensor, unpack(tensor, words));
      unread.delete(tensor);
    }
    const whole = storage.get(parentOf(tensor));
    if (!whole) {
      throw new EngineError(
        "bad-request",
        `reference backend: "${tensor.name}" (home ${tensor.home}) has no storage; allocate it, or compile the plan that uses it`,
      );
    }
    return tensor.view ? whole.subarray(tensor.view.offset, tensor.view.offset + sizeOf(tensor)) : whole;
  };

  const allocate = async (tensor: Tensor, data?: TensorData): Promise<void> => {
    checkAlive("allocate");
    checkAllocate(tensor, data, storage.has(tensor) || unread.has(tensor));
    if (isPacked(tensor.dtype)) unread.set(tensor, (data as Uint32Array | undefined)?.slice() ?? new Uint32Array(byteLengthOf(tensor) / 4));
    else if (tensor.home === "weights" && data) storage.set(tensor, (data as HostArray).slice());
    else {
      const fresh = storageFor(tensor);
      if (data) fresh.set(data as HostArray);
      storage.set(tensor, fresh);
    }
  };

  const fill = async (tensor: Tensor, words: Uint32Array, offset = 0): Promise<void> => {
    checkAlive("fill");
    checkFill(tensor, words, offset, storage.has(tensor) || unread.has(tensor));
    if (tensor.dtype === "f32") new Uint32Array((values(tensor) as Float32Array).buffer).set(words, offset);
    else if (unread.has(tensor)) unread.get(tensor)!.set(words, offset);
    else
      throw new EngineError("bad-request", `fill: comes before the first plan, got "${tensor.name}", which was read; load the model anew`);
  };

  const release = (io: Iterable<Tensor>): void => {
    for (const tensor of io) {
      const users = ioUsers.get(tensor)! - 1;
      ioUsers.set(tensor, users);
      if (users > 0) continue;
      ioUsers.delete(tensor);
      storage.delete(tensor);
    }
  };

  const compile = async (plan: Plan): Promise<Executable> => {
    checkAlive("compile");
    const arena: Arena = planArena(plan);
    const operands = new Set(plan.steps.flatMap((step) => Object.values(operandsOf(step)).flat()));
    const io = new Set([...operands].filter((tensor) => tensor.home === "io").map(parentOf));
    for (const tensor of operands) {
      if (tensor.home !== "arena" && tensor.home !== "io") values(tensor);
    }
    for (const tensor of io) {
      if (!storage.has(tensor)) storage.set(tensor, storageFor(tensor));
      ioUsers.set(tensor, (ioUsers.get(tensor) ?? 0) + 1);
    }
    if (arenaValues.length < arena.byteLength / 4) arenaValues = new Float64Array(arena.byteLength / 4);

    let isReleased = false;
    return {
      run: async (vars: Vars): Promise<void> => {
        checkAlive("run");
        if (isReleased) throw new EngineError("disposed", `run: plan "${plan.name}" was disposed; compile it again`);
        arenaValues.fill(Number.NaN);
        const found = new Map<Tensor, Values>();
        const valuesOf: ValuesOf = (tensor) => {
          let result = found.get(tensor);
          if (!result) {
            const start = tensor.home === "arena" ? arena.offsetOf(tensor) / 4 : 0;
            result = tensor.home === "arena" ? arenaValues.subarray(start, start + sizeOf(tensor)) : values(tensor);
            found.set(tensor, result);
          }
          return result;
        };
        for (const step of plan.steps) runStep(step, valuesOf, vars);
      },
      dispose: (): void => {
        if (isReleased || isDisposed) return;
        isReleased = true;
        release(io);
      },
    };
  };

  return {
    device,
    isHostMemory: true,
    values,
    allocate,
    fill,
    compile,
    write: (tensor, data, offset = 0): void => {
      const target = values(tensor);
      if (offset < 0 || offset + data.length > target.length) {
        throw new EngineError("bad-request", `write: "${tensor.name}" has ${target.length} elements, got ${data.length} from ${offset} on`);
      }
      target.set(data, offset);
    },
    read: async (tensor, length = sizeOf(tensor)): Promise<HostArray> => {
      const source = values(tensor).subarray(0, length);
      return tensor.dtype === "i32" ? Int32Array.from(source) : Float32Array.from(source);
    },
    get byteLength(): number {
      return [...storage.values(), ...unread.values(), arenaValues].reduce((sum, { byteLength }) => sum + byteLength, 0);
    },
    dispose: async (): Promise<void> => {
      isDisposed = true;
      storage.clear();
      unread.clear();
      ioUsers.clear();
      arenaValues = new Float64Array(0);
    },
  };
};
