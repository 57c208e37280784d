// `fulgurite export <run folder>`: what a run trained, as files that other tools load.

import { existsSync } from "node:fs";
import { mkdir, open, readdir, readFile, rename } from "node:fs/promises";
import { dirname, join } from "node:path";
import { EXPORT_FORMATS, type ExportDtype, type ExportFormat, exportModel, type FileToWrite, type PeftFiles } from "fulgurite";
import { readOptions } from "./commandLine.ts";
import { createProgress } from "./progress.ts";
import { UsageError } from "./usageError.ts";

const HELP = `usage: fulgurite export <folder> --format FORMAT --out DIR [options]

Writes what a run trained. <folder> is a run folder, or a folder with an adapter (adapter_model.safetensors).

  --format NAME         safetensors   the merged model as a Hugging Face folder
                        onnx          the merged model for ONNX Runtime and transformers.js, on the web too
                        peft          the LoRA adapter alone
  --out DIR             a new or empty folder; it is whole when the command ends well
  --dtype NAME          of the weights: original, f32, f16, bf16 (safetensors; default original) · f32, f16 (onnx; default f32)
                        · original, f32, f16 (peft)
  --last-logits         onnx: logits of the last row only, as transformers.js asks for them (long prompts, large vocabularies)
  --model SOURCE        the base that the adapter was trained on: a path, an address or owner/repo (default spark)
`;

const DTYPES: readonly ExportDtype[] = ["original", "f32", "f16", "bf16"];

interface Arguments {
  readonly folder: string;
  readonly format: ExportFormat;
  readonly out: string;
  readonly dtype: ExportDtype | undefined;
  readonly model: string;
  readonly allLogits: boolean;
}

const oneOf = <T extends string>(name: string, known: readonly T[], given: string | undefined): T => {
  const found = known.find((one) => one === given);
  if (found === undefined) throw new UsageError(`export: --${name} is one of ${known.join(", ")}, got ${JSON.stringify(given) ?? "none"}`);
  return found;
};

const readArguments = (args: string[]): Arguments | "help" => {
  const options = {
    format: { type: "string" },
    out: { type: "string" },
    dtype: { type: "string" },
    model: { type: "string", default: "spark" },
    "last-logits": { type: "boolean", default: false },
    help: { type: "boolean", short: "h", default: false },
  } as const;
  const { values, positionals } = readOptions("export", HELP, args, options);
  if (values.help) return "help";
  const [folder, ...rest] = positionals;
  if (folder === undefined || rest.length > 0) throw new UsageError(`export: takes one folder, got ${positionals.length}\n\n${HELP}`);
  const format = oneOf("format", EXPORT_FORMATS, values.format);
  if (!values.out) throw new UsageError(`export: --out is a folder, got none\n\n${HELP}`);
  return {
    folder,
    format,
    out: values.out,
    dtype: values.dtype === undefined ? undefined : oneOf("dtype", DTYPES, values.dtype),
    model: values.model,
    allLogits: !values["last-logits"],
  };
};

const WEIGHTS = "adapter_model.safetensors";

/** The three files of an adapter; the sidecar may be missing where PEFT made it. */
const readAdapter = async (folder: string): Promise<PeftFiles> => {
  const place = [join(folder, "adapter"), folder].find((path) => existsSync(join(path, WEIGHTS)));
  if (place === undefined)
    throw new UsageError(`export: ${folder} has adapter/${WEIGHTS} or ${WEIGHTS}, got neither; name the folder of a finished run`);
  const names = [WEIGHTS, "adapter_config.json", "fulgurite.json"].filter((name) => existsSync(join(place, name)));
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, new Uint8Array(await readFile(join(place, name)))] as const)),
  );
};

/** Part by part into a file of a temporary name. */
const write = async (path: string, { parts }: FileToWrite): Promise<void> => {
  await mkdir(dirname(path), { recursive: true });
  const file = await open(`${path}.tmp`, "w");
  try {
    for (const part of parts()) await file.writeFile(part);
  } finally {
    await file.close();
  }
  await rename(`${path}.tmp`, path);
};

export const exportRun = async (args: string[]): Promise<number> => {
  const given = readArguments(args);
  if (given === "help") {
    process.stdout.write(HELP);
    return 0;
  }
  const { folder, format, out, dtype, model, allLogits } = given;
  if (existsSync(out) && (await readdir(out)).length > 0)
    throw new UsageError(`export: --out is a new or empty folder, got ${out}, which holds files; choose another`);
  const progress = createProgress(process.stderr);
  const files = await exportModel(model, { format, allLogits, adapter: await readAdapter(folder), ...(dtype !== undefined && { dtype }) });
  for (const file of files) {
    await write(join(out, file.name), file);
    progress.line(`${join(out, file.name)}  ${file.byteLength} bytes`);
  }
  return 0;
};
