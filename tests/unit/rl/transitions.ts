// Random trajectories for property tests: calls that extend each other's context, and calls that do not.
import type { Group, Trajectory } from "@fulgurite/rl";
import type { Transition } from "@fulgurite/trace";
import fc from "fast-check";

export const VOCABULARY = 6;

export const call = (overrides: Partial<Transition>): Transition => ({
  rolloutId: "r0",
  attemptId: "a0",
  spanId: "s0",
  turn: 0,
  promptTokens: Int32Array.of(1),
  responseTokens: Int32Array.of(2),
  samplerLogprobs: Float32Array.of(-1),
  policyVersion: 0,
  temperature: 1,
  finishReason: "stop",
  ...overrides,
});

const ids = (minLength: number, maxLength: number) => fc.array(fc.integer({ min: 0, max: VOCABULARY - 1 }), { minLength, maxLength });
const turn = fc.record({
  continues: fc.boolean(),
  added: ids(1, 3),
  response: ids(1, 3),
  reward: fc.double({ min: -1, max: 1, noNaN: true }),
});

/** `continues`: the prompt is everything so far and the added tokens; otherwise the added tokens alone. */
export const trajectory = (rolloutId: string): fc.Arbitrary<Trajectory> =>
  fc
    .record({ turns: fc.array(turn, { minLength: 1, maxLength: 4 }), reward: fc.constantFrom(0, 0.25, 0.5, 1) })
    .map(({ turns, reward }) => {
      let context: number[] = [];
      const transitions = turns.map(({ continues, added, response, reward: stepReward }, index) => {
        const prompt = continues ? [...context, ...added] : added;
        context = [...prompt, ...response];
        return call({
          rolloutId,
          turn: index,
          promptTokens: Int32Array.from(prompt),
          responseTokens: Int32Array.from(response),
          samplerLogprobs: Float32Array.from(response, (token) => -0.5 - token / 10),
          reward: stepReward,
        });
      });
      return { rolloutId, transitions, reward };
    });

export const groups: fc.Arbitrary<Group[]> = fc
  .array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 3 })
  .chain((sizes) =>
    fc.tuple(
      ...sizes.map((size, g) =>
        fc
          .tuple(...Array.from({ length: size }, (_, member) => trajectory(`g${g}m${member}`)))
          .map((trajectories): Group => ({ id: `t${g}`, trajectories })),
      ),
    ),
  );
