// Talking to the painter's server. Changes of masks go one after the other, so that each knows the
// revision that it changes; when the server is gone, the one in flight is sent again until it is back.

const RETRY_MS = 1000;
const AT_ONCE = 2; // drawings loaded at the same time: a stroke never waits for them

export class Refused extends Error {
  constructor(status, answer) {
    super(answer.error || `The server answered ${status}.`);
    this.status = status;
    this.answer = answer;
  }
}

export class Server {
  constructor(onState) {
    this.onState = onState;
    this.chain = Promise.resolve();
    this.waiting = 0;
    this.loads = [];
    this.loading = 0;
  }

  async get(path) {
    return (await this.fetch(path)).json();
  }

  async bytes(path) {
    return new Uint8Array(await (await this.fetch(path)).arrayBuffer());
  }

  // `make` gives the body when its turn has come; `then` gets the answer before the next is sent.
  change(path, make = () => ({}), then = answer => answer) {
    const turn = this.chain.then(() => this.post(path, make())).then(then);
    this.chain = turn.catch(() => {}).then(() => { this.waiting--; this.tell(); });
    this.waiting++;
    this.tell();
    return turn;
  }

  async post(path, body) {
    const isPicture = body instanceof Blob;
    const headers = { "Content-Type": isPicture ? "image/png" : "application/json" };
    const response = await this.fetch(path, { method: "POST", headers, body: isPicture ? body : JSON.stringify(body) });
    return response.json();
  }

  async fetch(path, options = {}) {
    for (;;) {
      let response;
      try {
        response = await fetch(path, options);
      } catch {
        this.tell("lost");
        await new Promise(resolve => setTimeout(resolve, RETRY_MS));
        continue;
      }
      this.tell();
      if (!response.ok) throw new Refused(response.status, await response.json().catch(() => ({})));
      return response;
    }
  }

  tell(state) {
    this.onState(state || (this.waiting ? "saving" : "saved"));
  }

  async picture(path) {
    return createImageBitmap(await (await this.fetch(path)).blob());
  }

  // A picture of the gallery, which the generator has to draw first: few at a time.
  drawing(path) {
    return new Promise((resolve, reject) => {
      this.loads.push({ path, resolve, reject });
      this.load();
    });
  }

  async load() {
    if (this.loading >= AT_ONCE || !this.loads.length) return;
    const { path, resolve, reject } = this.loads.shift();
    this.loading++;
    try {
      resolve(await this.picture(path));
    } catch (error) {
      reject(error);
    }
    this.loading--;
    this.load();
  }

  // Pictures of a gallery that was closed need not be loaded any more.
  forgetLoads() {
    this.loads.splice(0).forEach(load => load.reject(new Error("not needed any more")));
  }
}
