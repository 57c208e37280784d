// The block that host and threads share: offsets in bytes from control(). wasm/backend.ts mirrors them.
//
//   0 generation   4 program (0: end)   8 threads      run requests
//  64 arrived     128 phase           192 sleepers     the barrier, one cache line each
// 256 rows        260 outRows         264 … 303 Adam's ten numbers (state.ts)
// 320 next piece of the step's work that nobody has taken

export const GENERATION: usize = 0;
export const PROGRAM: usize = 4;
export const THREADS: usize = 8;
export const ARRIVED: usize = 64;
export const PHASE: usize = 128;
export const SLEEPERS: usize = 192;
export const ROWS: usize = 256;
export const ADAM: usize = 264;
export const NEXT: usize = 320;
export const CONTROL_BYTES: usize = 512;

// @ts-ignore: decorator
@inline
export function control(): usize {
  return (__heap_base + 255) & ~255;
}
