// The WASM SIMD executor: the fast path where there is no GPU. A plan becomes one table in linear memory and a run is one call into the
// interpreter of assembly/index.ts. This file lays memory out and moves numbers; it computes nothing.
//
// A run blocks the calling thread until it is done: call it from a worker where a page must not stall.

import type { DeviceInfo } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { planArena } from "../plan/arena.ts";
import type { Backend, Executable, HostArray, TensorData } from "../plan/backend.ts";
import { checkAllocate, checkFill } from "../plan/checkAllocate.ts";
import { rowCount } from "../plan/rowCount.ts";
import { operandsOf, type Plan, type Rows, sizeOf, type Tensor, type Vars } from "../plan/step.ts";
import { isPacked, packedLayout } from "../weights/formats.ts";
import { placeOf } from "./costs.ts";
import { encodePlan, panelKindOf, panelledWeightOf, scratchBytes } from "./encode.ts";
import { type Machine, startMachine } from "./machine.ts";
import { findSpawner, mayWait, type ThreadSpawner } from "./threads.ts";

export type { Thread, ThreadJob, ThreadSpawner } from "./threads.ts";

export interface WasmOptions {
  /** At most this many threads, the caller included. Default: min(cores, 4) where threads can be had, else 1. Results do not depend on it. */
  readonly threads?: number;
  /** The single build, compiled ahead: there is one thread then. Default: compiled here. */
  readonly kernels?: WebAssembly.Module;
  /** Starts the threads. Default: Web Workers where the browser allows it; in Node pass nodeThreads (node/wasmThreads.ts), else there is one. */
  readonly spawn?: ThreadSpawner;
  /** Stands behind the description: why it is not another device. */
  readonly note?: string;
  /** A run with fewer GEMM operations (2 a multiply-add) stays on the caller's thread: waking the others would cost more. */
  readonly minThreadedFlop?: number;
}

/** Offsets of assembly/control.ts. */
const ROWS = 256;
const ADAM = 264;

const parentOf = (tensor: Tensor): Tensor => tensor.view?.of ?? tensor;

/** The GEMMs of a plan: operations for each row (2 a multiply-add), and which rows. */
const gemmsOf = (plan: Plan): { flopPerRow: number; rows: Rows }[] =>
  plan.steps.flatMap((step) => {
    if ("w" in step) return [{ flopPerRow: 2 * sizeOf(step.w), rows: step.rows }];
    return step.op === "weightGrad" ? [{ flopPerRow: 2 * sizeOf(step.dw), rows: step.rows }] : [];
  });

const adamNames = ["learningRate", "beta1", "beta2", "eps", "weightDecay", "gradClipNorm", "adamStep"] as const;

/** Adam's ten numbers in the order of assembly/state.ts; the differences from 1 are taken in f64. */
const adamNumbers = (vars: Vars): number[] => {
  const value = (name: (typeof adamNames)[number]): number => {
    const number = vars[name];
    if (number === undefined) throw new EngineError("bad-request", `adamW: vars.${name} is needed, got none; pass it to run`);
    return number;
  };
  const [rate, beta1, beta2, eps, decay, clip, t] = adamNames.map(value) as [number, number, number, number, number, number, number];
  return [rate, 1 - rate * decay, beta1, 1 - beta1, beta2, 1 - beta2, eps, clip, 1 / (1 - beta1 ** t), 1 / (1 - beta2 ** t)];
};

export const createWasmBackend = async (options: WasmOptions = {}): Promise<Backend> => {
  const available = options.spawn && mayWait() ? options.spawn : findSpawner();
  const spawner = options.kernels ? undefined : available;
  const wanted = options.threads ?? Math.min(spawner?.cores() ?? 1, 4);
  if (!Number.isInteger(wanted) || wanted < 1) {
    throw new EngineError("bad-request", `createWasmBackend: threads is a positive integer, got ${wanted}`);
  }
  const { minThreadedFlop = 4e6 } = options;
  /** Dropped by dispose, so that the memory goes even if somebody keeps the backend. */
  let machine: Machine | undefined = await startMachine(spawner ? wanted - 1 : 0, spawner, options.spawn !== undefined, options.kernels);
  let isBroken = false;
  const threadCount = machine.threads.length + 1;
  const control = machine.kernels.controlAddress() >>> 0;
  const device: DeviceInfo = {
    kind: "wasm",
    description: `WASM SIMD, ${threadCount} thread${threadCount === 1 ? "" : "s"}${options.note ? ` (${options.note})` : ""}`,
  };

  const addresses = new Map<Tensor, number>();
  /** Matrices that lie in panels (assembly/panels.ts) since the first plan that reads them; before, and else, in rows. */
  const panelled = new Set<Tensor>();
  /** How many executables use an io tensor; at none its storage is freed. */
  const ioUsers = new Map<Tensor, number>();
  /** Arena and scratch of all plans in one block; when it moves, programs are encoded again before their next run. */
  let workspace = { address: 0, arenaBytes: 0, scratchBytes: 0, generation: 0 };

  const alive = (where: string): Machine => {
    if (!machine) throw new EngineError("disposed", `${where}: the backend was disposed; create another one`);
    if (isBroken) throw new EngineError("device", `${where}: the backend failed in an earlier run; create another one`);
    return machine;
  };

  const addressOf = (tensor: Tensor): number => {
    const address = addresses.get(parentOf(tensor));
    if (address === undefined) {
      throw new EngineError(
        "bad-request",
        `wasm backend: "${tensor.name}" (home ${tensor.home}) has no storage; allocate it, or compile the plan that uses it`,
      );
    }
    return address + (tensor.view?.offset ?? 0) * 4;
  };

  /** A tensor's numbers where they lie; invalid after the next growth. */
  const viewOf = (tensor: Tensor): HostArray =>
    new (tensor.dtype === "i32" ? Int32Array : Float32Array)(alive("wasm backend").heap.memory.buffer, addressOf(tensor), sizeOf(tensor));

  const store = (tensor: Tensor, data?: TensorData): void => {
    const { values, scales } = placeOf(tensor);
    const address = alive("allocate").heap.allocate(values + scales, `"${tensor.name}"`, tensor.home);
    addresses.set(tensor, address);
    if (data) place(tensor, new Uint32Array(data.buffer, data.byteOffset, data.length), 0);
    else new Uint8Array(alive("allocate").heap.memory.buffer, address, values + scales).fill(0);
  };

  /** Words of formats.ts from word `offset` on to where they lie in rows. */
  const place = (tensor: Tensor, words: Uint32Array, offset: number): void => {
    const memory = new Uint32Array(alive("fill").heap.memory.buffer);
    const scaleWord = isPacked(tensor.dtype) ? packedLayout(tensor.dtype, sizeOf(tensor)).scaleWord : Number.POSITIVE_INFINITY;
    const valueCount = Math.min(Math.max(scaleWord - offset, 0), words.length);
    memory.set(words.subarray(0, valueCount), addressOf(tensor) / 4 + offset);
    if (valueCount < words.length) memory.set(words.subarray(valueCount), scalesOf(tensor) / 4 + offset + valueCount - scaleWord);
  };

  /** An f32 matrix out of its panels. */
  const rowsOf = (tensor: Tensor): Float32Array => {
    const [outputs, inputs] = tensor.shape as [number, number];
    const panels = new Float32Array(alive("read").heap.memory.buffer, addressOf(tensor), Math.ceil(outputs / 8) * 8 * inputs);
    return Float32Array.from({ length: outputs * inputs }, (_, at) => {
      const [o, i] = [Math.floor(at / inputs), at % inputs];
      return panels[(o & ~7) * inputs + i * 8 + (o & 7)]!;
    });
  };

  const scalesOf = (tensor: Tensor): number => {
    const { values, scales } = placeOf(tensor);
    return scales === 0 ? 0 : addressOf(tensor) + values;
  };

  const toPanels = (weight: Tensor): void => {
    if (panelled.has(weight)) return;
    const { heap, kernels } = alive("compile");
    const [outputs, inputs] = weight.shape as [number, number];
    const scratch = heap.allocate(8 * inputs * 4, "8 rows of a weight", "weights");
    kernels.toPanels(panelKindOf(weight), addressOf(weight), scalesOf(weight), outputs, inputs, scratch);
    heap.free(scratch);
    panelled.add(weight);
  };

  /** Matrices become panels; a part of one, read as rows, would then be read wrong. */
  const settleWeights = (plan: Plan): void => {
    for (const step of plan.steps) {
      const weight = panelledWeightOf(step);
      if (weight) toPanels(weight);
    }
    const part = plan.steps.flatMap((step) => operandsOf(step).reads).find((tensor) => tensor.view && panelled.has(tensor.view.of));
    if (part)
      throw new EngineError(
        "unsupported",
        `plan "${plan.name}": WASM reads a weight whole, got "${part.name}", a view of one; use the whole`,
      );
  };

  const growWorkspace = (arenaBytes: number, perThread: number): void => {
    if (workspace.address && arenaBytes <= workspace.arenaBytes && perThread <= workspace.scratchBytes) return;
    const { heap } = alive("compile");
    const arena = Math.max(arenaBytes, workspace.arenaBytes);
    const scratch = Math.max(perThread, workspace.scratchBytes);
    const previous = workspace;
    // Freed first, since the contents need not survive: the larger block may then reuse the place.
    if (previous.address) heap.free(previous.address);
    workspace = { address: 0, arenaBytes: 0, scratchBytes: 0, generation: previous.generation + 1 };
    try {
      workspace = {
        ...workspace,
        address: heap.allocate(arena + scratch * threadCount, "the arena", "arena"),
        arenaBytes: arena,
        scratchBytes: scratch,
      };
    } catch (cause) {
      // The plans compiled so far keep running.
      const { arenaBytes: oldArena, scratchBytes: oldScratch } = previous;
      if (previous.address) {
        const address = heap.allocate(oldArena + oldScratch * threadCount, "the arena", "arena");
        workspace = { ...workspace, address, arenaBytes: oldArena, scratchBytes: oldScratch };
      }
      throw cause;
    }
  };

  const releaseIo = (io: Iterable<Tensor>): void => {
    for (const tensor of io) {
      const users = ioUsers.get(tensor)! - 1;
      if (users > 0) {
        ioUsers.set(tensor, users);
        continue;
      }
      ioUsers.delete(tensor);
      machine?.heap.free(addressOf(tensor));
      addresses.delete(tensor);
    }
  };

  const compile = async (plan: Plan): Promise<Executable> => {
    const { heap, kernels } = alive("compile");
    const arena = planArena(plan);
    const operands = new Set(plan.steps.flatMap((step) => Object.values(operandsOf(step)).flat()));
    for (const tensor of operands) if (tensor.home !== "arena" && tensor.home !== "io") addressOf(tensor);
    const io = new Set([...operands].filter((tensor) => tensor.home === "io").map(parentOf));
    const held: Tensor[] = [];
    let program = 0;
    let encodedFor = -1;
    const encode = (): void => {
      const table = encodePlan(
        plan,
        {
          of: (tensor) => (tensor.home === "arena" ? workspace.address + arena.offsetOf(tensor) : addressOf(tensor)),
          scalesOf,
        },
        { address: workspace.address + workspace.arenaBytes, perThread: workspace.scratchBytes },
      );
      if (!program) program = heap.allocate(table.byteLength, `the table of plan "${plan.name}"`, "io");
      new Uint32Array(heap.memory.buffer, program, table.length).set(table);
      encodedFor = workspace.generation;
    };
    try {
      for (const tensor of io) {
        if (!addresses.has(tensor)) store(tensor);
        ioUsers.set(tensor, (ioUsers.get(tensor) ?? 0) + 1);
        held.push(tensor);
      }
      settleWeights(plan);
      growWorkspace(arena.byteLength, scratchBytes(plan, kernels.gemmScratch()));
      encode();
    } catch (cause) {
      if (program) heap.free(program);
      releaseIo(held);
      throw cause;
    }

    const counted = plan.steps.flatMap((step) => [...("rows" in step ? [step.rows] : []), ...("outRows" in step ? [step.outRows] : [])]);
    /** One of each kind of count: they are asked for before every run, and a plan has hundreds of steps. */
    const counts = [...new Map(counted.map((rows) => [rows.count, rows])).values()];
    const gemms = gemmsOf(plan);
    const hasAdam = plan.steps.some((step) => step.op === "adamW");
    let isReleased = false;
    return {
      run: async (vars: Vars): Promise<void> => {
        const { heap, kernels } = alive("run");
        if (isReleased) throw new EngineError("disposed", `run: plan "${plan.name}" was disposed; compile it again`);
        for (const rows of counts) rowCount(rows, vars);
        if (encodedFor !== workspace.generation) encode();
        new Int32Array(heap.memory.buffer, control + ROWS, 2).set([vars.rows ?? 0, vars.outRows ?? 0]);
        if (hasAdam) new Float32Array(heap.memory.buffer, control + ADAM, 10).set(adamNumbers(vars));
        const isLarge =
          threadCount > 1 && gemms.reduce((sum, { flopPerRow, rows }) => sum + flopPerRow * rowCount(rows, vars), 0) >= minThreadedFlop;
        try {
          kernels.run(program, isLarge ? threadCount : 1);
        } catch (cause) {
          isBroken = true;
          throw new EngineError("device", `run: plan "${plan.name}" runs through, got a WASM trap; create another backend`, { cause });
        }
      },
      dispose: (): void => {
        if (isReleased || !machine) return;
        isReleased = true;
        machine.heap.free(program);
        releaseIo(io);
      },
    };
  };

  return {
    device,
    isHostMemory: true,
    allocate: async (tensor, data) => {
      alive("allocate");
      checkAllocate(tensor, data, addresses.has(tensor));
      store(tensor, data);
    },
    fill: async (tensor, words, offset = 0) => {
      alive("fill");
      checkFill(tensor, words, offset, addresses.has(tensor));
      if (panelled.has(tensor))
        throw new EngineError(
          "bad-request",
          `fill: comes before the first plan, got "${tensor.name}", which one reads; load the model anew`,
        );
      place(tensor, words, offset);
    },
    compile,
    write: (tensor, data, offset = 0) => {
      alive("write");
      const target = viewOf(tensor);
      if (tensor.home === "weights" || offset < 0 || offset + data.length > target.length) {
        throw new EngineError(
          "bad-request",
          `write: takes a state, kv or io tensor and stays inside it, got "${tensor.name}" (home ${tensor.home}, ${target.length} elements) and ${data.length} from ${offset} on`,
        );
      }
      target.set(data, offset);
    },
    read: async (tensor, length = sizeOf(tensor)) => {
      alive("read");
      if (tensor.dtype !== "f32" && tensor.dtype !== "i32")
        throw new EngineError(
          "unsupported",
          `read: WASM gives packed weights to its kernels alone, got "${tensor.name}" (${tensor.dtype})`,
        );
      if (panelled.has(tensor)) return rowsOf(tensor).slice(0, length);
      // slice copies out of the shared memory
      return viewOf(tensor).slice(0, length);
    },
    get byteLength() {
      return machine?.heap.byteLength ?? 0;
    },
    dispose: async () => {
      if (!machine) return;
      const { kernels, threads } = machine;
      machine = undefined;
      addresses.clear();
      panelled.clear();
      ioUsers.clear();
      if (threads.length > 0 && !isBroken) kernels.stop();
      await Promise.all(threads.map((thread) => thread.stop()));
    },
  };
};
