// Server: questions to the server of the page, its stream of changes, and the token where the address needs one.

export class Refused extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

export async function ask(method, parameters = {}, headers = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  let response;
  try {
    response = await fetch(`/api/${method}?${new URLSearchParams(given)}`, { headers, cache: "no-store" });
  } catch {
    throw new Refused("the server of this page does not answer: is 'nfq-enforcer ui' running?", 0);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer.error ?? `the server answers ${response.status}`, response.status);
  return answer;
}

// Exchange the token for a cookie; "" asks whether there is one already.
export const openSession = (token) => ask("session", {}, token ? { Authorization: `Bearer ${token}` } : {});

// Follow the changes of a filter until the returned function is called.
export function follow(filter, onMessage, onAway) {
  let source = null, timer = null, ended = false;
  const connect = () => {
    source = new EventSource(`/api/stream?${new URLSearchParams({ filter })}`);
    source.onmessage = (event) => onMessage(JSON.parse(event.data));
    source.onerror = () => {
      onAway();
      if (source.readyState === EventSource.CLOSED && !ended) timer = setTimeout(connect, 2000);
    };
  };
  connect();
  return () => {
    ended = true;
    clearTimeout(timer);
    source.close();
  };
}
