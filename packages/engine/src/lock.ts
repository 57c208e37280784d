// One door to a backend: tasks run one after another, in the order in which they came. A task that fails fails alone.

export type Lock = <T>(task: () => Promise<T>) => Promise<T>;

export const createLock = (): Lock => {
  let last: Promise<unknown> = Promise.resolve();
  return (task) => {
    const mine = last.then(task, task);
    last = mine.catch(() => {});
    return mine;
  };
};
