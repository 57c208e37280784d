// A pause of one macrotask, so that a loop of computation lets events, timers and messages through.
// setTimeout(0) would cost 4 ms a tick in browsers, and setImmediate exists only in Node.

export interface Turn {
  /** Resolves after everything that waits in the event loop now. One call at a time. */
  next(): Promise<void>;
  /** An open port keeps a Node process alive. */
  close(): void;
}

export const createTurn = (): Turn => {
  const { port1, port2 } = new MessageChannel();
  let resume: () => void = () => {};
  port1.onmessage = () => resume();
  port2.onmessage = () => resume();
  // Node empties a port, up to 1000 messages that its own listener caused, before it looks at timers. Sending to and fro
  // leaves each port empty.
  let [sender, receiver] = [port1, port2];
  return {
    next() {
      [sender, receiver] = [receiver, sender];
      return new Promise((resolve) => {
        resume = resolve;
        sender.postMessage(0);
      });
    },
    close() {
      port1.close();
      port2.close();
    },
  };
};
