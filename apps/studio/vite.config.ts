// COOP and COEP make the page cross-origin isolated, which buys WASM threads; everything works without them.
import { defineConfig } from "vite";

const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

export default defineConfig({
  server: { headers, port: 5173 },
  preview: { headers },
  worker: { format: "es" },
  // linked packages of this repository: served as they are, so that their workers keep their own URLs
  optimizeDeps: {
    // their dependencies, named: found late, they would make the page reload once
    include: [
      "comlink",
      "zod",
      "zod/mini",
      "ai",
      "@ai-sdk/openai-compatible",
      "@huggingface/jinja",
      "@huggingface/tokenizers",
      "refa",
      "fflate",
      "uplot",
    ],
    exclude: [
      "fulgurite",
      "@fulgurite/agent",
      "@fulgurite/engine",
      "@fulgurite/rl",
      "@fulgurite/trace",
      "@fulgurite/spark",
      "@fulgurite/demo-calculator",
    ],
  },
  build: { target: "es2022" },
});
