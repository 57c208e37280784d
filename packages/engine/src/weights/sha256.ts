// SHA-256 by the platform's WebCrypto. Hashes name base models and adapters in files; nothing secret is hashed.

import { EngineError } from "../errors.ts";

/** Lower-case hex. Throws EngineError("unsupported") where the page is no secure context. */
export const sha256 = async (bytes: Uint8Array): Promise<string> => {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) throw new EngineError("unsupported", "sha256: crypto.subtle exists, got none; serve the page over https or from localhost");
  // WebCrypto takes no view of shared memory.
  const plain = bytes.buffer instanceof ArrayBuffer ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
  return Array.from(new Uint8Array(await subtle.digest("SHA-256", plain)), (byte) => byte.toString(16).padStart(2, "0")).join("");
};
