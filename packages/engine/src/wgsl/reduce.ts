// Workgroup reductions in WGSL text. Two levels: 16 lanes each combine every sixteenth value, upwards, then every lane combines the 16
// results, upwards. The order depends on the number of threads alone. Two barriers instead of a tree's eight: a software device
// compiles and runs a barrier dearly. Shared memory instead of subgroups: it is the variant that every device has.

const reduction = (
  name: string,
  threads: number,
  combine: (a: string, b: string) => string,
): string => `fn ${name}(value: f32, lane: u32) -> f32 {
  reduced[lane] = value;
  workgroupBarrier();
  if (lane < 16u) {
    var part = reduced[lane];
    for (var i = lane + 16u; i < ${threads / 16}u * params.block; i += params.block) { part = ${combine("part", "reduced[i]")}; }
    sixteen[lane] = part;
  }
  workgroupBarrier();
  var whole = sixteen[0];
  for (var i = 1u; i < params.block; i++) { whole = ${combine("whole", "sixteen[i]")}; }
  return whole;
}
`;

/**
 * sumOf(value, lane) and maxOf(value, lane): every lane gets the result. `threads` is a multiple of 16; uses 4·threads + 64 bytes of
 * workgroup memory. Must be called in uniform control flow; calls may follow each other without a barrier.
 */
export const reductions = (threads: number): string => `var<workgroup> reduced: array<f32, ${threads}>;
var<workgroup> sixteen: array<f32, 16>;
${reduction("sumOf", threads, (a, b) => `${a} + ${b}`)}${reduction("maxOf", threads, (a, b) => `max(${a}, ${b})`)}`;
