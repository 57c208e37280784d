// The packages' sources, run as they are: a bench needs no build but the WASM kernels' (npm run build:wasm).
// It stays open while the bench runs, since the engine imports its executors on first use.

import { fileURLToPath } from "node:url";
import { createServer } from "vite";

/** `ssrLoadModule(path)` loads a module, by its path on disk or from the root of the checkout; `close()` when all is done. */
export const openSources = () =>
  createServer({
    root: fileURLToPath(new URL("../..", import.meta.url)),
    appType: "custom",
    configFile: false,
    logLevel: "error",
    server: { middlewareMode: true, ws: false, watch: null },
    ssr: { resolve: { conditions: ["@fulgurite/source", "node", "import", "module", "default"] } },
  });
