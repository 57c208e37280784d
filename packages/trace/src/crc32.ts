// CRC-32 (IEEE 802.3) where there is no zlib: over a table of 256 words, made at the first use.

let table: Uint32Array | undefined;

const makeTable = (): Uint32Array =>
  Uint32Array.from({ length: 256 }, (_, byte) => {
    let word = byte;
    for (let bit = 0; bit < 8; bit++) word = word & 1 ? 0xedb88320 ^ (word >>> 1) : word >>> 1;
    return word;
  });

/** Of `bytes`, going on from the sum of what came before them (0 at the beginning). "123456789" → 0xcbf43926. */
export const crc32 = (bytes: Uint8Array, before = 0): number => {
  table ??= makeTable();
  let word = ~before;
  for (const byte of bytes) word = (table[(word ^ byte) & 0xff] as number) ^ (word >>> 8);
  return ~word >>> 0;
};
