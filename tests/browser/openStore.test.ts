// The store of a page, as the face opens it.
import type { RedactableTask } from "@fulgurite/trace";
import { openStore } from "fulgurite";
import { expect, test } from "vitest";

test("a page may ask the browser to keep its store, and hears the answer; what is not to be kept is said there too", async () => {
  const heard: string[] = [];
  let hear = (): void => {};
  const answered = new Promise<void>((resolve) => {
    hear = resolve;
  });
  const store = await openStore(`asked-${Math.random()}`, {
    persist: true,
    onReport: (message) => {
      heard.push(message);
      hear();
    },
    redact: { task: (task: RedactableTask) => ({ ...task, input: "[input]" }) },
  });
  await answered;
  expect(heard[0]).toContain("persistent storage was asked for, got ");
  expect((await store.enqueue([{ input: "Ann" }]))[0]!.input).toBe("[input]");
  await store.close();
});
