// How a step reads its words: the table that the host's encode.ts writes. Word k is four bytes: an address, a size, or an f32's bits.

// @ts-ignore: decorator
@inline
export function word(step: usize, k: i32): i32 {
  return load<i32>(step + ((<usize>k) << 2));
}

// @ts-ignore: decorator
@inline
export function address(step: usize, k: i32): usize {
  return <usize>load<u32>(step + ((<usize>k) << 2));
}

// @ts-ignore: decorator
@inline
export function number(step: usize, k: i32): f32 {
  return load<f32>(step + ((<usize>k) << 2));
}

/** First row of a thread's share of n; the share ends where the next thread's begins. */
// @ts-ignore: decorator
@inline
export function share(n: i32, thread: i32, threads: i32): i32 {
  return <i32>((<i64>n) * (<i64>thread) / (<i64>threads));
}
