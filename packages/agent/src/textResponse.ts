// A Response whose text is at hand. text() and json() give it at once; whoever takes the body another way gets the platform's own.

type TextResponseClass = new (text: string, init: ResponseInit) => Response;

const defineClass = (): TextResponseClass =>
  class TextResponse extends Response {
    readonly #whole: string;
    #isTaken = false;

    constructor(text: string, init: ResponseInit) {
      super(text, init);
      this.#whole = text;
    }

    /** undefined where the body was begun another way: the platform's own method then says what there is to say. */
    #take(): string | undefined {
      this.#refuseTwice();
      if (super.bodyUsed || this.body?.locked) return undefined;
      this.#isTaken = true;
      return this.#whole;
    }

    #refuseTwice(): void {
      if (this.#isTaken) throw new TypeError("Body is unusable: it has been read before; clone the response to read it twice");
    }

    override get bodyUsed(): boolean {
      return this.#isTaken || super.bodyUsed;
    }

    override async text(): Promise<string> {
      return this.#take() ?? super.text();
    }

    // biome-ignore lint/suspicious/noExplicitAny: as the platform declares it
    override async json(): Promise<any> {
      const text = this.#take();
      return text === undefined ? super.json() : JSON.parse(text);
    }

    override async arrayBuffer(): Promise<ArrayBuffer> {
      this.#refuseTwice();
      return super.arrayBuffer();
    }

    override async blob(): Promise<Blob> {
      this.#refuseTwice();
      return super.blob();
    }

    override async formData(): Promise<FormData> {
      this.#refuseTwice();
      return super.formData();
    }

    override clone(): Response {
      this.#refuseTwice();
      return super.clone();
    }
  };

let textResponse: TextResponseClass | undefined;

/** `init` is the Response's. */
export const toTextResponse = (text: string, init: ResponseInit): Response => {
  textResponse ??= defineClass();
  return new textResponse(text, init);
};
