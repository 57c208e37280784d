// The WebGPU executor: a plan becomes dispatches (kernels/), pipelines, bind groups and one array that `run` loops over.
// Memory: one buffer for each weights, state, kv and io tensor; one arena buffer that all plans share, activations at the offsets of
// plan/arena.ts; one scratch buffer for partial sums inside a step. Views are ranges of a binding.
// A weight [rows, width] above the device's binding limit lies in shards (shards.ts); any other tensor above it is refused with both numbers.

import type { DeviceInfo } from "../contract.ts";
import { EngineError } from "../errors.ts";
import { type Arena, planArena } from "../plan/arena.ts";
import type { Backend, Executable, HostArray, TensorData } from "../plan/backend.ts";
import { checkAllocate, checkFill } from "../plan/checkAllocate.ts";
import { operandsOf, type Plan, sizeOf, type Tensor, type Vars } from "../plan/step.ts";
import { byteLengthOf } from "../weights/formats.ts";
import { createBuffers, USAGE } from "./buffers.ts";
import { type DeviceOptions, openDevice } from "./device.ts";
import { createReplay, type InFlight, type Launch, SLOT_BYTES, slotsOf } from "./executable.ts";
import { lowerSteps } from "./kernels/fuse.ts";
import { PARAMS_BYTES, SCRATCH } from "./kernels/kernel.ts";
import type { Target } from "./kernels/target.ts";
import { createPacing } from "./pacing.ts";
import { createPipelines } from "./pipelines.ts";
import { createReadback } from "./readback.ts";
import { type Piece, piecesOf, type Shard, shardsOf } from "./shards.ts";

export interface WebGpuBackend extends Backend {
  /** What WebGPU says of the adapter: vendor, architecture, device, description. */
  readonly identity: string;
  readonly target: Target;
}

export interface WebGpuOptions extends DeviceOptions {
  /** Every launch is validated by itself, and errors name it. Many times slower. */
  readonly debug?: boolean;
  /** Called at the end of dispose(), when the device is gone: node/webgpu.ts lets go of Dawn here. */
  readonly onDispose?: () => void;
}

/** Packed words are bound four at a time, so their buffers end at a multiple of 16 bytes. */
const bindingBytesOf = (tensor: Tensor): number => Math.ceil(byteLengthOf(tensor) / 16) * 16;

const rootOf = (tensor: Tensor): Tensor => tensor.view?.of ?? tensor;

/** Throws EngineError("device") when there is no adapter or it refuses a device. */
export const createWebGpuBackend = async (gpu: GPU, options: WebGpuOptions = {}): Promise<WebGpuBackend> => {
  const open = await openDevice(gpu, options);
  const { device, check } = open;
  const info: DeviceInfo = { kind: "webgpu", description: open.description };
  const buffers = createBuffers(open);
  const readback = createReadback(open, buffers);
  const { pipelineFor, layoutFor } = createPipelines(open);
  const storage = new Map<Tensor, GPUBuffer>();
  /** Weights that lie in shards; `storage` has the shards. */
  const cuts = new Map<Tensor, readonly Shard[]>();
  /** How many executables use an io tensor; at none its buffer is freed. */
  const ioUsers = new Map<Tensor, number>();
  const inFlight: InFlight = [];
  const pacing = createPacing();
  let arenaBuffer: GPUBuffer | undefined;
  let scratchBuffer: GPUBuffer | undefined;
  /** Raised whenever arena or scratch is replaced: bind groups that name the old one are stale. */
  let generation = 0;

  const bufferOf = (tensor: Tensor): GPUBuffer => {
    const buffer = storage.get(rootOf(tensor));
    if (!buffer) {
      if (cuts.has(tensor))
        throw new EngineError(
          "device",
          `webgpu: "${tensor.name}" must fit this device's binding limit of ${open.target.bindingBytes} bytes where it is used, got ${byteLengthOf(tensor)}; only embed and linear layers read a weight in shards`,
        );
      throw new EngineError(
        "bad-request",
        `webgpu backend: "${tensor.name}" (home ${tensor.home}) has no storage; allocate it, or compile the plan that uses it`,
      );
    }
    return buffer;
  };

  /** What all plans share; `name` tells for which one it grew. */
  const grown = async (
    name: string,
    old: GPUBuffer | undefined,
    byteLength: number,
    isBoundWhole: boolean,
  ): Promise<GPUBuffer | undefined> => {
    if (byteLength <= (old?.size ?? 0)) return old;
    // The old one goes first: at the limit of memory both would not fit. Work that still uses it finishes; its contents are nobody's.
    if (old) buffers.destroy(old);
    generation++;
    return await buffers.create(name, byteLength, { home: "arena", isBoundWhole });
  };

  const growShared = async (plan: Plan, arenaBytes: number, scratchBytes: number): Promise<void> => {
    const before = { arena: arenaBuffer?.size ?? 0, scratch: scratchBuffer?.size ?? 0 };
    const grow = async (name: string, sizes: typeof before): Promise<void> => {
      // Forgotten before the attempt, so that a failed one leaves no destroyed buffer behind.
      const [arena, scratch] = [arenaBuffer, scratchBuffer];
      arenaBuffer = undefined;
      arenaBuffer = await grown(`arena (${name})`, arena, sizes.arena, false);
      scratchBuffer = undefined;
      scratchBuffer = await grown(`scratch (${name})`, scratch, sizes.scratch, true);
    };
    try {
      await grow(`plan "${plan.name}"`, { arena: arenaBytes, scratch: scratchBytes });
    } catch (cause) {
      // The plans compiled so far keep running.
      await grow("as it was", before);
      throw cause;
    }
  };

  const upload = async (pieces: readonly Piece[]): Promise<void> => {
    for (const { shard, part, offset } of pieces) await buffers.upload(bufferOf(shard), part, offset);
  };

  const allocate = async (tensor: Tensor, data?: TensorData): Promise<void> => {
    check("allocate");
    checkAllocate(tensor, data, storage.has(tensor) || cuts.has(tensor));
    const shards = shardsOf(tensor, open.target.bindingBytes);
    // Known before the first wait: a second call must be refused meanwhile. A failure gives everything back.
    if (shards.length > 1) cuts.set(tensor, shards);
    try {
      for (const shard of shards) {
        const buffer = await buffers.create(shard.tensor.name, bindingBytesOf(shard.tensor), { home: tensor.home });
        storage.set(shard.tensor, buffer);
      }
      if (data) await upload(piecesOf(tensor, shards, data));
    } catch (cause) {
      for (const shard of shards) {
        const buffer = storage.get(shard.tensor);
        storage.delete(shard.tensor);
        if (buffer) buffers.destroy(buffer);
      }
      cuts.delete(tensor);
      throw cause;
    }
  };

  const fill = async (tensor: Tensor, words: Uint32Array, offset = 0): Promise<void> => {
    check("fill");
    checkFill(tensor, words, offset, storage.has(tensor) || cuts.has(tensor));
    await upload(piecesOf(tensor, shardsOf(tensor, open.target.bindingBytes), words, offset));
    check("fill");
  };

  const bindingOf = (tensor: Tensor, arena: Arena): GPUBufferBinding => {
    if (tensor === SCRATCH) return { buffer: scratchBuffer! };
    const size = tensor.home === "weights" && !tensor.view ? bindingBytesOf(tensor) : sizeOf(tensor) * 4;
    if (tensor.home === "arena") return { buffer: arenaBuffer!, offset: arena.offsetOf(tensor), size };
    return { buffer: bufferOf(tensor), offset: (tensor.view?.offset ?? 0) * 4, size };
  };

  const releaseIo = (io: Iterable<Tensor>): void => {
    for (const tensor of io) {
      const users = ioUsers.get(tensor)! - 1;
      ioUsers.set(tensor, users);
      if (users > 0) continue;
      ioUsers.delete(tensor);
      const buffer = storage.get(tensor);
      storage.delete(tensor);
      if (buffer) buffers.destroy(buffer);
    }
  };

  const compile = async (plan: Plan): Promise<Executable> => {
    check("compile");
    const arena = planArena(plan);
    const dispatches = lowerSteps(plan.steps, open.target);
    // From the steps, not the kernels: an operand that a kernel leaves out (old of crossEntropy) can be written all the same.
    const operands = new Set(plan.steps.flatMap((step) => Object.values(operandsOf(step)).flat()));
    const io = new Set([...operands].filter(({ home }) => home === "io").map(rootOf));
    for (const tensor of operands) {
      if (tensor.home !== "arena" && tensor.home !== "io" && !cuts.has(tensor)) bufferOf(tensor);
    }
    for (const tensor of io) ioUsers.set(tensor, (ioUsers.get(tensor) ?? 0) + 1);
    const { slots, slotOf } = slotsOf(dispatches);
    let params: GPUBuffer;
    let pipelines: GPUComputePipeline[];
    try {
      for (const tensor of io) {
        if (!storage.has(tensor)) storage.set(tensor, await buffers.create(tensor.name, sizeOf(tensor) * 4, { home: "io" }));
      }
      const scratchBytes = dispatches.reduce((most, dispatch) => Math.max(most, dispatch.scratchBytes), 0);
      await growShared(plan, arena.byteLength, scratchBytes);
      pipelines = await Promise.all(dispatches.map(pipelineFor));
      check("compile");
      params = await buffers.create(`parameters of ${plan.name}`, Math.max(slots.length, 1) * SLOT_BYTES, {
        ...{ home: "io", isBoundWhole: false },
        usage: USAGE.UNIFORM | USAGE.COPY_DST,
      });
    } catch (cause) {
      releaseIo(io);
      throw cause instanceof EngineError ? cause : await open.failure("compile", cause);
    }

    let bound: readonly GPUBindGroup[] = [];
    let boundGeneration = -1;
    const bindGroups = (): readonly GPUBindGroup[] => {
      if (boundGeneration === generation) return bound;
      bound = dispatches.map(({ label, access, bindings }) =>
        device.createBindGroup({
          label,
          layout: layoutFor(access),
          entries: [
            { binding: 0, resource: { buffer: params, size: PARAMS_BYTES } },
            ...bindings.map((tensor, i) => ({ binding: i + 1, resource: bindingOf(tensor, arena) })),
          ],
        }),
      );
      boundGeneration = generation;
      return bound;
    };
    bindGroups();

    const launches = dispatches.map((dispatch, i): Launch => ({ dispatch, pipeline: pipelines[i]!, slot: slotOf[i]! }));
    const replay = createReplay({
      open,
      name: plan.name,
      launches,
      slots,
      params,
      inFlight,
      pacing,
      bindGroups,
      debug: options.debug ?? false,
    });
    let isReleased = false;
    return {
      run: async (vars: Vars): Promise<void> => {
        if (isReleased) throw new EngineError("disposed", `run: plan "${plan.name}" was disposed; compile it again`);
        await replay(vars);
      },
      dispose: (): void => {
        if (isReleased) return;
        isReleased = true;
        bound = [];
        buffers.destroy(params);
        releaseIo(io);
      },
    };
  };

  const write = (tensor: Tensor, data: HostArray, offset = 0): void => {
    check("write");
    const buffer = bufferOf(tensor);
    if (offset < 0 || offset + data.length > sizeOf(tensor)) {
      throw new EngineError("bad-request", `write: "${tensor.name}" has ${sizeOf(tensor)} elements, got ${data.length} from ${offset} on`);
    }
    if (data instanceof Int32Array !== (tensor.dtype === "i32")) {
      throw new EngineError("bad-request", `write: "${tensor.name}" holds ${tensor.dtype}, got ${data.constructor.name}`);
    }
    device.queue.writeBuffer(buffer, ((tensor.view?.offset ?? 0) + offset) * 4, data as HostArray & { buffer: ArrayBuffer });
  };

  const read = async (tensor: Tensor, length: number = sizeOf(tensor)): Promise<HostArray> => {
    check("read");
    const buffer = bufferOf(tensor);
    const count = Math.min(Math.max(length, 0), sizeOf(tensor));
    const into = tensor.dtype === "i32" ? new Int32Array(count) : new Float32Array(count);
    await readback.read(buffer, (tensor.view?.offset ?? 0) * 4, into);
    return into;
  };

  let disposal: Promise<void> | undefined;
  const dispose = (): Promise<void> => {
    disposal ??= (async () => {
      storage.clear();
      cuts.clear();
      ioUsers.clear();
      // Destroying the device destroys its buffers and rejects pending maps.
      await open.close();
      options.onDispose?.();
    })();
    return disposal;
  };

  return {
    device: info,
    identity: open.identity,
    target: open.target,
    maxArenaBytes: device.limits.maxBufferSize,
    maxTensorBytes: Math.min(device.limits.maxBufferSize, open.target.bindingBytes),
    allocate,
    fill,
    compile,
    write,
    read,
    get byteLength(): number {
      return disposal ? 0 : buffers.byteLength;
    },
    dispose,
  };
};
