// Which of the two is slower, as last seen: it decides how a crowd of writers shares the disk.
//
// Where the disk writes before as many callers as there are could be served, the crowd goes in halves: one is served while the
// disk writes the other. Where it does not, every write takes all who are there.

export interface Pace {
  /** For one write. */
  writeMs: number;
  /** To number and encode what one caller of a write asks for. To check it at the door and to answer costs about as much again. */
  callerMs: number;
}

export const createPace = (): Pace => ({ writeMs: 0, callerMs: 0 });

export const isDiskQuick = ({ writeMs, callerMs }: Pace, callers: number): boolean => writeMs < 2 * callers * callerMs;
