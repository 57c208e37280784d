/** The first index below `length` from which on `isThere`, by halving; `length` where it never is. */
export const firstOf = (length: number, isThere: (index: number) => boolean): number => {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isThere(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
};
