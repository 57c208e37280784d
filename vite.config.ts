// The tests of the whole house: one project in Node, one in the system's Chromium. Both run on the sources; no build is needed but the WASM kernels'.
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";

const source = "@fulgurite/source";

export default defineConfig({
  test: {
    reporters: ["default", "./.ci/summary.ts"],
    projects: [
      {
        ssr: { resolve: { conditions: [source, "node", "import", "module", "default"], externalConditions: [source, "node"] } },
        test: {
          name: "node",
          environment: "node",
          include: ["tests/{unit,conformance,golden,runtime,fault}/**/*.test.ts"],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        resolve: { conditions: [source, "module", "browser", "development|production"] },
        // crossOriginIsolated, so that WASM threads are tested too
        server: { headers: { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" } },
        test: {
          name: "browser",
          include: ["tests/{browser,conformance}/**/*.test.ts"],
          sequence: { groupOrder: 1 },
          testTimeout: 120_000,
          hookTimeout: 120_000,
          browser: {
            enabled: true,
            headless: true,
            screenshotFailures: false,
            instances: [{ browser: "chromium" }],
            provider: playwright({
              launchOptions: {
                executablePath: process.env.CHROMIUM_PATH ?? "/usr/bin/chromium",
                // without the last flag requestAdapter() is null on a machine without a GPU
                args: ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-webgpu"],
              },
            }),
          },
        },
      },
    ],
  },
});
