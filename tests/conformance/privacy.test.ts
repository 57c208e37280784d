// What is changed or left out before anything is kept, on every store: by `redact`, and of itself.
import type { Claim, Span } from "@fulgurite/trace";
import { expect } from "vitest";
import { codeOf, collect } from "../outcomes.ts";
import { begin, describeStores, openWorld, span } from "./world.ts";

describeStores((storeCase, test_) => {
  test_("redact sees each span before it is kept, changes or drops it, and what it drops is counted", async () => {
    const seen: string[] = [];
    const { store } = await openWorld(storeCase, {
      redact: {
        span: (span) => {
          seen.push(span.id);
          if (span.attributes.secret !== undefined) return null;
          if (span.id === "moved") return { ...span, rolloutId: "b" };
          if (span.id === "broken") throw new Error("redact broke");
          return { ...span, attributes: { ...span.attributes, text: "[removed]" } };
        },
      },
    });
    const attempt = await begin(store, "a");
    const make = (id: string, attributes: Span["attributes"]) => span("a", attempt.id, id, { attributes });
    await store.append([make("s1", { text: "my name", n: 1 }), make("s2", { secret: "x" })]);
    expect((await collect(store.spans({ rolloutId: "a" }))).map(({ id, attributes }) => [id, attributes])).toEqual([
      ["s1", { text: "[removed]", n: 1 }],
    ]);
    expect(await store.stats()).toMatchObject({ spans: 1, redacted: 1 });
    expect(await codeOf(store.append([make("s3", {}), make("moved", {})]))).toBe("bad-input");
    await expect(store.append([make("s3", {}), make("broken", {})])).rejects.toThrow("redact broke");
    expect(seen).toEqual(["s1", "s2", "s3", "moved", "s3", "broken"]);
    expect(await store.stats()).toMatchObject({ spans: 1, redacted: 1 });
  });

  test_("a span that is redacted away still needs its attempt, and is its heartbeat", async () => {
    const { store, time } = await openWorld(storeCase, { redact: { span: () => null } });
    const attempt = await begin(store, "a");
    time.now = 2_000;
    await store.append([span("a", attempt.id, "s1")]);
    expect((await store.attempts("a"))[0]!.lastHeartbeatMs).toBe(2_000);
    expect(await codeOf(store.append([span("a", "nobody", "s1")]))).toBe("unknown");
    expect(await store.stats()).toMatchObject({ spans: 0, redacted: 1 });
  });

  test_("redact sees an attempt's last spans as all others", async () => {
    const redact = { span: (given: Span) => (given.id === "s2" ? null : { ...given, attributes: { text: "[removed]" } }) };
    const { store } = await openWorld(storeCase, { redact });
    const attempt = await begin(store, "a");
    const last = ["s1", "s2"].map((id) => span("a", attempt.id, id, { attributes: { text: "my name" } }));
    expect(await store.finish(attempt, { status: "succeeded" }, last)).toMatchObject({ status: "succeeded" });
    const found = await collect(store.spans({ rolloutId: "a" }));
    expect(found.map(({ id, attributes }) => [id, attributes])).toEqual([["s1", { text: "[removed]" }]]);
    expect(await store.stats()).toMatchObject({ spans: 1, redacted: 1 });
  });

  test_("redact sees tasks and errors before they are kept, and what it gives is what everybody gets", async () => {
    const seen: unknown[] = [];
    const { store } = await openWorld(storeCase, {
      redact: {
        task: (task) => {
          seen.push(task);
          if (task.id === "moved") return { ...task, id: "b" };
          if (task.id === "broken") return { ...task, input: Number.NaN };
          return { ...task, input: "[input]", metadata: { kept: task.metadata.kept ?? null } };
        },
        error: (error, attempt) => {
          seen.push([error.message, attempt.rolloutId]);
          return error.name === "Silent" ? null : { name: error.name, message: "[message]" };
        },
      },
    });
    const [a] = await store.enqueue([
      { id: "a", input: { name: "Ann" }, metadata: { kept: 1, email: "ann@home" }, config: { maxAttempts: 3 } },
    ]);
    expect(a).toMatchObject({ input: "[input]", metadata: { kept: 1 }, config: { maxAttempts: 3 } });
    expect(Object.keys(a!.metadata)).toEqual(["kept"]);
    const [claim] = await store.claim("w");
    expect(claim!.rollout.input).toBe("[input]");
    await store.finish(claim!.attempt, { status: "unresponsive", error: { name: "E", message: "Ann said", stack: "at Ann" } });
    const [again] = await store.claim("w");
    await store.finish(again!.attempt, { status: "failed", error: { name: "Silent", message: "Ann again" } });
    const attempts = await store.attempts("a");
    expect(attempts[0]!.error).toEqual({ name: "E", message: "[message]" });
    expect(Object.hasOwn(attempts[1]!, "error")).toBe(false);
    expect(seen).toEqual([
      { id: "a", mode: "train", input: { name: "Ann" }, metadata: { kept: 1, email: "ann@home" } },
      ["Ann said", "a"],
      ["Ann again", "a"],
    ]);
    expect(await codeOf(store.enqueue([{ id: "moved", input: 1 }]))).toBe("bad-input");
    expect(await codeOf(store.enqueue([{ id: "broken", input: 1 }]))).toBe("bad-input");
    expect((await store.stats()).rollouts.queued).toBe(0);
  });

  test_("headers that let somebody in are not stored, whichever way they come; words that only look like them are", async () => {
    const { store } = await openWorld(storeCase);
    const secret = "s3cr3t0123456789";
    const headers = { Authorization: `Bearer ${secret}`, Cookie: secret, "X-Api-Key": secret, accept: "*/*" };
    const innocent = { authorization: "granted", cookie: "oatmeal", pair: ["cookie", "milk"], tool: { api_key: { type: "string" } } };
    await store.enqueue([
      {
        id: "a",
        input: { headers, innocent },
        metadata: { request: { headers: Object.entries(headers) }, authorization: `Basic ${secret}` },
      },
    ]);
    const [{ rollout, attempt }] = (await store.claim("w")) as [Claim];
    expect(rollout.input).toEqual({
      headers: { Authorization: "[removed]", Cookie: "[removed]", "X-Api-Key": "[removed]", accept: "*/*" },
      innocent,
    });
    await store.append([
      span("a", attempt.id, "s1", {
        attributes: {
          "http.request.header.authorization": [`Bearer ${secret}`],
          "http.request.header.x-api-key": secret,
          authorization: `bearer ${secret}`,
          har: { headers: [{ name: "authorization", value: `Token ${secret}` }] },
          pairs: [["Proxy-Authorization", secret]],
          "exception.stacktrace": `at fetch (headers: { authorization: 'Bearer ${secret}' })`,
          events: [{ name: "exception", attributes: { "exception.message": `401 for Bearer ${secret}` } }],
          tokens: Int32Array.of(1),
        },
      }),
    ]);
    const error = {
      name: "APIError",
      message: `401 {"Authorization": "Bearer ${secret}", "x-api-key": "${secret}"}`,
      stack: `Error: cookie=${secret}; path=/\n  at f`,
    };
    await store.finish(attempt, { status: "failed", error });
    await store.publish({ name: "p", kind: "prompt", metadata: { headers }, files: {} });
    const all = JSON.stringify([
      await collect(store.rollouts()),
      await store.attempts("a"),
      await collect(store.spans({ rolloutId: "a" })),
      await collect(store.resources()),
    ]);
    expect(all).not.toContain(secret);
    expect(all).toContain("oatmeal");
    expect((await store.attempts("a"))[0]!.error!.message).toBe('401 {"Authorization": "[removed]", "x-api-key": "[removed]"}');
  });

  test_("headers and keys are not stored as lists, lines, arguments of tools, addresses or texts of errors either", async () => {
    const { store } = await openWorld(storeCase);
    const secret = "sk-s3cr3t0123456789abcdef";
    const bearer = `Bearer ${secret}`;
    const structures = {
      rawHeaders: ["accept", "*/*", "authorization", bearer, "x-api-key", secret],
      headers: [`Authorization: ${bearer}`, "accept: */*"],
      sent: { headers: `accept: */*\r\nAuthorization: ${bearer}\r\n`, _header: `POST / HTTP/1.1\r\nCookie: a=1; sid=${secret}` },
      deep: { requestHeaders: { authorization: { value: [[bearer]] } } },
      har: { headers: [{ header: "Authorization", value: { stringValue: bearer } }] },
      options: { apiKey: secret, api_key: secret, baseURL: "https://host/v1" },
      grant: { access_token: secret, "x-goog-api-key": secret, "proxy-authorization": secret, authorization: secret },
      call: { name: "get", arguments: JSON.stringify({ q: "weather", headers: { Authorization: bearer } }) },
      address: { url: `https://me:${secret}@host:8080/?api_key=${secret}&q=1`, "url.query": `key=1&access_token=${secret}` },
      error: { "error.message": `"authorization": "${bearer}"`, stack: `Error\n at 'x-api-key': '${secret}'` },
    };
    const texts = [
      `{\\"Authorization\\":\\"${bearer}\\"}`,
      `Authorization: Digest username="u", response="${secret}"`,
      `Authorization: AWS4-HMAC-SHA256 Credential=AK/2026, Signature=${secret}`,
      `Set-Cookie: a=b; sid=${secret}; Path=/`,
      `["authorization", "${bearer}"]`,
      `GET https://me:${secret}@host/?key=${secret}&token=${secret} failed`,
      `OPENAI_API_KEY=${secret}`,
      `Incorrect API key provided: ${secret}. You can find your API key at https://host/keys.`,
    ];
    await store.enqueue([{ id: "a", input: structures, metadata: structures }]);
    const [{ rollout, attempt }] = (await store.claim("w")) as [Claim];
    await store.append([span("a", attempt.id, "s1", { attributes: { ...structures, "exception.message": texts.join("\n") } })]);
    await store.finish(attempt, { status: "failed", error: { name: bearer, message: texts.join("\n"), stack: texts.join("\n") } });
    const all = JSON.stringify([rollout, await store.attempts("a"), await collect(store.spans({ rolloutId: "a" }))]);
    expect(all).not.toContain(secret.slice(3));
    // and what is no secret stays
    expect(rollout.input).toMatchObject({
      rawHeaders: ["accept", "*/*", "authorization", "[removed]", "x-api-key", "[removed]"],
      headers: ["Authorization: [removed]", "accept: */*"],
      options: { baseURL: "https://host/v1" },
      call: { arguments: '{"q":"weather","headers":{"Authorization":"[removed]"}}' },
      address: { url: "https://me:[removed]@host:8080/?api_key=[removed]&q=1" },
    });
    expect((await store.attempts("a"))[0]!.error!.message.split("\n").at(-1)).toContain("You can find your API key at https://host/keys.");
  });

  test_("what only looks like a secret stays as it is, and what was taken out is not taken out again", async () => {
    const { store } = await openWorld(storeCase);
    const innocent = {
      schema: {
        properties: { headers: { type: "object", properties: { authorization: { type: "string" } } }, api_key: { type: "string" } },
      },
      prose: "The bearer of this ring may ask for authorization: nobody else.",
      token: "hello",
      cookie: "oatmeal",
      list: ["cookie", "milk", "flour"],
      table: { headers: ["name", "cookie", "price"] },
      url: "https://host:8080/a?query=key&page=2",
      message: "authorization: ask the front desk",
      arguments: '{"recipe":"cookies"}',
      removed: { headers: { authorization: "[removed]" }, arguments: '{"authorization":"[removed]"}' },
    };
    const [rollout] = await store.enqueue([{ id: "a", input: innocent }]);
    expect(rollout!.input).toEqual({ ...innocent, table: { headers: ["name", "cookie", "price"] } });
    const [{ attempt }] = (await store.claim("w")) as [Claim];
    const message = "401: authorization: [removed], then x-api-key=[removed] and 'cookie': '[removed]'";
    await store.finish(attempt, { status: "failed", error: { name: "E", message } });
    expect((await store.attempts("a"))[0]!.error!.message).toBe(message);
  });

  test_("looking for secrets takes no longer than the text is long, whatever the text", async () => {
    const { store } = await openWorld(storeCase);
    const attempt = await begin(store, "a");
    const many = 200_000;
    const texts = [
      " ".repeat(many),
      "authorization:".repeat(many / 20),
      `authorization:${" ".repeat(many)}`,
      `cookie: "${"a_".repeat(many)}`,
      "://a:".repeat(many / 5),
    ];
    await store.finish(attempt, { status: "failed", error: { name: "E", message: texts.join("\n") } });
    expect((await store.attempts("a"))[0]!.error!.message.length).toBeGreaterThan(many);
  });
});
