// Sizes of a training run on this demo. "default" fits ten minutes on two CPU cores, control included; "tiny" is for slow devices,
// "smoke" only shows that everything works.

export interface Recipe {
  readonly steps: number;
  readonly tasksPerStep: number;
  readonly groupSize: number;
  readonly learningRate: number;
  readonly heldOutTasks: number;
  readonly trainTasks: number;
}

export const recipes: Readonly<Record<"default" | "tiny" | "smoke", Recipe>> = {
  default: { steps: 40, tasksPerStep: 16, groupSize: 8, learningRate: 2e-3, heldOutTasks: 400, trainTasks: 4096 },
  tiny: { steps: 8, tasksPerStep: 4, groupSize: 8, learningRate: 3e-3, heldOutTasks: 200, trainTasks: 4096 },
  smoke: { steps: 3, tasksPerStep: 2, groupSize: 4, learningRate: 2e-3, heldOutTasks: 8, trainTasks: 64 },
};
