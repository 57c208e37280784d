// Serves the store in argv[2] at the port in argv[3] (0: any) until it is killed. Says the port on stdout when it listens.
import { writeSync } from "node:fs";
import { serveStore } from "@fulgurite/trace/http";
import { listen, openFileStore } from "@fulgurite/trace/node";

const [folder, port] = process.argv.slice(2) as [string, string];
const store = await openFileStore(folder, { onReport: () => {} });
const { url } = await listen(serveStore(store), { port: Number(port) });
writeSync(1, `${new URL(url).port}\n`);
