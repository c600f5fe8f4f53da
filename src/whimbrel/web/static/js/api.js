// Calls of the controller's API. A refusal is a problem document (RFC 9457); its one line is for the reader. A call that
// needs a token asks for one and is made again.

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let askForToken = async () => false;

/** `ask` gets a token from the reader and resolves true when there is a session. */
export function onToken(ask) {
  askForToken = ask;
}

async function problemOf(answer) {
  let detail = "";
  try {
    const told = await answer.json();
    detail = typeof told.detail === "string" ? told.detail : "";
    if (Array.isArray(told.errors)) {
      const fields = told.errors.map((one) => `${one.field}: ${one.message}`).join("; ");
      if (fields && !detail.includes(fields)) detail = detail ? `${detail} (${fields})` : fields;
    }
  } catch {
    // not JSON: the status has to do
  }
  return new Problem(answer.status, detail || `the controller answered ${answer.status} ${answer.statusText}`);
}

async function call(method, path, body, again = true) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-Whimbrel"] = "1";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), credentials: "same-origin", cache: "no-store" });
  } catch {
    throw new Problem(0, "the controller does not answer");
  }
  if (answer.status === 401 && again && (await askForToken())) return call(method, path, body, false);
  if (!answer.ok) throw await problemOf(answer);
  return answer.status === 204 ? null : answer.json();
}

const name = encodeURIComponent;

export const api = {
  region: () => call("GET", "v1/region"),
  log: (limit) => call("GET", `v1/log?limit=${limit}`),
  samples: (user) => call("GET", `v1/users/${name(user)}/samples`),
  migrations: (limit) => call("GET", `v1/migrations?limit=${limit}`),
  migration: (id) => call("GET", `v1/migrations/${name(id)}`),
  migrate: (body) => call("POST", "v1/migrations", body),
  cancel: (id) => call("POST", `v1/migrations/${name(id)}/cancel`),
  run: (body) => call("POST", "v1/services", body),
  remove: (service, keepVolumes) => call("DELETE", `v1/services/${name(service)}${keepVolumes ? "?keep_volumes=true" : ""}`),
  session: () => call("GET", "v1/session"),
  logOut: () => call("DELETE", "v1/session"),
  experiments: () => call("GET", "v1/experiments"),
  experimentFile: (path) => `v1/experiments/files/${String(path).split("/").map(name).join("/")}`,
};

/** Trade a token for a session cookie, which is what an event stream can send. */
export async function openSession(token) {
  await call("POST", "v1/session", { token }, false);
}
