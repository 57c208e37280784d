// Workgroup reductions in WGSL text. The order of every sum is a fixed binary tree over the lanes, so that it depends on the
// number of threads alone. Shared memory instead of subgroups: it is the variant that every device has.

const tree = (threads: number, combine: (a: string, b: string) => string): string => {
  let text = "";
  for (let half = threads / 2; half >= 1; half /= 2) {
    text += `  if (lane < ${half}u) { reduced[lane] = ${combine("reduced[lane]", `reduced[lane + ${half}u]`)}; }\n  workgroupBarrier();\n`;
  }
  return text;
};

/**
 * sumOf(value, lane) and maxOf(value, lane): every lane gets the result. `threads` is a power of two; uses 4·threads bytes of
 * workgroup memory. Must be called in uniform control flow.
 */
export const reductions = (threads: number): string => `var<workgroup> reduced: array<f32, ${threads}>;
fn sumOf(value: f32, lane: u32) -> f32 {
  reduced[lane] = value;
  workgroupBarrier();
${tree(threads, (a, b) => `${a} + ${b}`)}  let total = reduced[0];
  workgroupBarrier();
  return total;
}
fn maxOf(value: f32, lane: u32) -> f32 {
  reduced[lane] = value;
  workgroupBarrier();
${tree(threads, (a, b) => `max(${a}, ${b})`)}  let largest = reduced[0];
  workgroupBarrier();
  return largest;
}
`;
