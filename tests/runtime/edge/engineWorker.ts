// engine as a worker: the policy itself, on WASM that was compiled with the worker.
import { createBackend } from "@fulgurite/engine";
import { sampleAndTrain } from "./engineRehearsal.ts";
import kernels from "./kernels.wasm";

export default {
  async fetch(request: Request): Promise<Response> {
    const isCompiledHere = new URL(request.url).pathname === "/compiledHere";
    try {
      return Response.json(await sampleAndTrain(await createBackend("wasm", isCompiledHere ? {} : { kernels })));
    } catch (error) {
      return new Response(String(error), { status: 500 });
    }
  },
};
