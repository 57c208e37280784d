#!/usr/bin/env node
// What npm links as `fulgurite`: it must be there when packages are installed, which is before they are built.

import { existsSync } from "node:fs";

const cli = new URL("../dist/cli.js", import.meta.url);
if (existsSync(cli)) await import(cli.href);
else {
  console.error(`fulgurite: it must be built, got no ${cli.pathname}; run npm run build`);
  process.exitCode = 2;
}
