// From a sampled token to the row of the next run, on the device. One thread a lane: a handful of numbers each, so its time is the
// dispatch's. The uniform number is random.ts in u32 arithmetic; 24 bits are exact in f32, so host and device agree bit for bit.

import { LANE, LANE_WIDTH, type Step } from "../../plan/step.ts";
import { columnsOf, type Dispatch, flat, flatGroups, kernel } from "./kernel.ts";

const PCG = `fn pcg(value: u32) -> u32 {
  let state = value * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}
`;

export const advance = (step: Extract<Step, { op: "advance" }>): Dispatch[] => {
  const { rows, token, logprob, lanes, history, tokens, positions, slots, uniform } = step;
  return [
    kernel({
      label: "advance",
      bindings: {
        picked: token,
        logprob,
        lanes,
        history,
        tokens,
        positions,
        slots,
        uniforms: uniform,
      },
      body: `${PCG}${flat(
        "params.rows",
        `let first = i * params.laneWidth;
  let left = lanes[first + ${LANE.left}u];
  if (left == 0) { return; }
  let chosen = picked[i];
  let position = lanes[first + ${LANE.position}u];
  let count = lanes[first + ${LANE.count}u];
  let drawn = lanes[first + ${LANE.drawn}u] + 1;
  let at = 2u * (i * params.most + u32(count));
  history[at] = f32(chosen);
  history[at + 1u] = logprob[i];
  tokens[i] = chosen;
  positions[i] = position;
  slots[i] = lanes[first + ${LANE.slot}u];
  uniforms[i] = f32(pcg(bitcast<u32>(lanes[first + ${LANE.seed}u]) ^ pcg(u32(drawn))) >> 8u) * ${2 ** -24};
  var isStop = false;
  for (var s = ${LANE_WIDTH}u; s < params.laneWidth; s++) { isStop = isStop || lanes[first + s] == chosen; }
  lanes[first + ${LANE.position}u] = position + 1;
  lanes[first + ${LANE.count}u] = count + 1;
  lanes[first + ${LANE.drawn}u] = drawn;
  lanes[first + ${LANE.left}u] = select(left - 1, 0, isStop);`,
      )}`,
      rows,
      sizes: { laneWidth: columnsOf(lanes), most: columnsOf(history) / 2 },
      groups: (n) => flatGroups(n),
      work: 30,
    }),
  ];
};
