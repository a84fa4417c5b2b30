"use strict";
// What can be changed, by those who have logged in. Nothing is sent before its effect was shown.

const SECRET = "tandemgw";
const form = (id) => document.forms[id];
const quoted = (word) => (/^[\w.:=,/[\]-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
const command = (...words) => ["tandemgw", ...words.filter(Boolean).map(quoted)].join(" ");

function credentials() {
  const secret = sessionStorage.getItem(SECRET);
  return secret ? { Authorization: `Bearer ${secret}` } : {};
}

// The answer to a POST; what the server refuses is an error.
async function post(path, body) {
  const headers = { "Content-Type": "application/json", ...credentials() };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const said = await answer.json();
  if (answer.status === 401) await learnSession();
  if (said.error) throw new Error(said.error);
  return said;
}

const ask = (request) => post("act", { ask: request });

// Who may do what; whether this one may look.
async function learnSession() {
  const answer = await fetch("session", { headers: credentials() });
  const session = await answer.json();
  byId("login").hidden = !session.login || session.change;
  byId("by-certificate").hidden = !session.certificate || session.change;
  byId("logout").hidden = !session.change;
  byId("readonly").hidden = session.login || session.certificate;
  byId("changes").hidden = !session.change;
  byId("look").hidden = !session.look;
  byId("do").hidden = !session.look;
  if (!session.look) {
    byId("health").textContent = "log in to see this unit";
    byId("health").className = "";
  }
  if (session.change && !form("switch").key.options.length) await learnSwitches();
  return session.look;
}

// Whether there was something new.
function fill(select, values) {
  const wanted = values.map(([value, text]) => `${value} ${text}`).join("\n");
  if (select.dataset.values === wanted) return false;
  select.dataset.values = wanted;
  const chosen = select.value;
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value)));
  if (values.some(([value]) => value === chosen)) select.value = chosen;
  return true;
}

const switches = new Map();

async function learnSwitches() {
  const { lines } = await ask({ command: "ha-get" });
  switches.clear();
  for (const line of lines) switches.set(line.key, line.value);
  fill(form("switch").key, lines.map((line) => [line.key, `${line.key} = ${line.value}`]));
}

let units = { node: "", peers: [] };

// What the forms offer follows the unit.
function offer(status) {
  units = { node: status.node, peers: status.peers };
  fill(form("failover").to, [["", "the best one"], ...status.peers.map((peer) => [peer.name, peer.name])]);
  fill(form("failover").group, [["", "all groups"], ...status.groups.map((group) => [group.name, group.name])]);
  if (fill(form("explain").port, status.ports.map((port) => [port.name, port.name]))) {
    form("explain").dispatchEvent(new Event("input"));
  }
  byId("maintenance-now").textContent = status.maintenance ? "This unit is in maintenance." : "";
}

const words = (filter) => filter.trim().split(/\s+/).filter(Boolean);

function peerState(peer) {
  if (!peer.connected) return `${peer.name}: not connected`;
  const state = peer.maintenance ? "in maintenance" : peer.in_sync ? "in sync" : "not in sync";
  return `${peer.name}: ${state}, ports up: ${dash(peer.ports_up)}, would be lost: ${number(peer.lag.would_be_lost)} sessions`;
}

function translated({ src, dst, nat_src, nat_dst }) {
  const parts = [nat_src === src ? "" : `from ${nat_src}`, nat_dst === dst ? "" : `to ${nat_dst}`];
  return parts.filter(Boolean).join(" ") || "-";
}

function showSessions({ rows, all }) {
  const headers = ["Protocol", "Source", "Destination", "Translated", "State", "Policy", "On peers", "Age", "Expires", "Packets", "Bytes"];
  table("found", headers, rows.map((row) => [
    row.proto, row.src, row.dst, translated(row), row.state, row.policy, row.synced ? "yes" : "no",
    duration(row.age_s), duration(row.expires_s), number(row.packets), bytes(row.bytes),
  ]));
  return `${number(rows.length)} of ${number(all)} sessions`;
}

function showTalkers({ rows, all }, by) {
  const headers = [by[0].toUpperCase() + by.slice(1), "Sessions", "Packets", "Bytes"];
  table("found", headers, rows.map((row) => [row.name, number(row.sessions), number(row.packets), bytes(row.bytes)]));
  return `${number(rows.length)} of ${number(all)}, those with the most bytes first`;
}

// Each form: its command, what it would do, and what does it. `check` returns the text that is shown,
// and what applies or forgets it.
const FORMS = {
  switch: {
    command: ({ key, value, scope }) => scope.value === "all"
      ? `edit ${key.value} = ${value.value} in the config, then: ${command("push", "FILE")}`
      : command("ha", "set", key.value, value.value),
    async check({ key, value, scope }) {
      const [name, to] = [key.value, value.value.trim()];
      if (scope.value === "all") {
        const checked = await post("act", { "check-switch": { key: name, value: to } });
        if (checked.refused) return { text: `${checked.text}Not every unit can have this: nothing changes.` };
        return {
          text: checked.text,
          apply: () => ask({ command: "push-apply", push: checked.push }),
          cancel: () => ask({ command: "push-abort" }),
        };
      }
      const others = units.peers.map((peer) => `${peer.name}: no change\n`).join("");
      return {
        text: `${units.node}: ${name} ${switches.get(name)} → ${to}, until the next restart or reload\n${others}`,
        apply: () => ask({ command: "ha-set", key: name, value: to }),
      };
    },
    done: ([line]) => {
      learnSwitches();
      if (!line.units) return `${line.key} is now ${line.new}, was ${line.old}`;
      return line.state === "failed" ? "the config before is in force on all units" : "in force on all units, and in their files";
    },
  },
  failover: {
    command: ({ to, group, force }) =>
      command("failover", group.value && "--group", group.value, to.value && "--to", to.value, force.checked && "--force"),
    async check({ to, group, force }) {
      return {
        text: units.peers.filter((peer) => !to.value || peer.name === to.value).map(peerState).join("\n"),
        apply: () => ask({ command: "failover", group: group.value || null, to: to.value || null, force: force.checked }),
      };
    },
    done: (lines) => lines.map((line) => line.refused
      ? `group ${line.group} was not handed over: ${line.refused}`
      : `${line.to} is now primary of group ${line.group}, after ${line.took_ms.toFixed(1)} ms`).join("\n"),
  },
  maintenance: {
    command: ({ state, minutes }) =>
      command("maintenance", state.value, state.value === "on" && minutes.value && "--for", state.value === "on" && minutes.value && `${minutes.value}m`),
    async check({ state, minutes }) {
      const on = state.value === "on";
      return {
        text: on
          ? `${units.node} hands its groups over and stays standby${minutes.value ? ` for ${minutes.value} minutes` : " until it is ended"}\n${units.peers.map(peerState).join("\n")}`
          : `${units.node} ends its maintenance`,
        apply: () => ask({ command: "maintenance", on, for_s: on && minutes.value ? minutes.value * 60 : null }),
      };
    },
    done: ([line]) => {
      if (!line.on) return `${line.node} is not in maintenance`;
      return line.primary_of.length
        ? `${line.node} is in maintenance, but still primary of ${line.primary_of.join(", ")}: no other unit can take over`
        : `${line.node} is in maintenance, and standby of all groups`;
    },
  },
  clear: {
    command: ({ filter }) => command("sessions", "clear", ...words(filter.value)),
    async check({ filter }) {
      const wanted = words(filter.value);
      const { lines: [found] } = await ask({ command: "count", filter: wanted });
      return {
        text: `${number(found.sessions)} sessions match: they end, on all units`,
        apply: found.sessions ? () => ask({ command: "clear", filter: wanted }) : null,
      };
    },
    done: ([line]) => [
      `${number(line.cleared)} sessions ended`,
      ...line.skipped.map((left) => `${number(left.sessions)} of group ${left.group} are left: end them on its primary`),
    ].join("\n"),
  },
  search: {
    command({ filter, what }) {
      const [order, key] = words(what.value);
      const asked = order === "by" ? ["--top", "200", "--by", key] : ["--limit", "200", ...(order ? ["--sort", key] : [])];
      return command("sessions", ...words(filter.value), ...asked);
    },
    async check({ filter, what }) {
      const [order, key] = words(what.value);
      const wanted = words(filter.value);
      byId("found").replaceChildren();
      return {
        text: order === "by"
          ? showTalkers(await post("act", { talkers: { filter: wanted, by: key } }), key)
          : showSessions(await post("act", { sessions: { filter: wanted, sort: key ?? null } })),
      };
    },
  },
  explain: {
    command: ({ protocol, source, destination, port }) =>
      command("explain", protocol.value, source.value, destination.value, "--in", port.value),
    async check({ protocol, source, destination, port }) {
      const said = await ask({
        command: "explain", protocol: protocol.value, source: source.value, destination: destination.value, in_port: port.value,
      });
      return { text: said.text };
    },
  },
};

for (const [name, action] of Object.entries(FORMS)) {
  const inputs = form(name).elements;
  const [shown, result, apply] = ["code", "pre", ".apply"].map((part) => form(name).querySelector(part));
  let ready = null;
  const tell = (text, style) => {
    result.textContent = text;
    result.className = style;
  };
  const change = () => {
    shown.textContent = action.command(inputs);
    if (ready?.cancel) run(ready.cancel);
    ready = null;
    if (apply) apply.disabled = true;
  };
  const run = async (work) => {
    try {
      await work();
    } catch (error) {
      tell(error.message, "bad");
    }
  };
  form(name).addEventListener("input", change);
  form(name).addEventListener("submit", (event) => {
    event.preventDefault();
    change();
    run(async () => {
      tell("…", "");
      const checked = await action.check(inputs);
      tell(checked.text, "");
      ready = checked;
      if (apply) apply.disabled = !checked.apply;
    });
  });
  apply?.addEventListener("click", () => run(async () => {
    const work = ready?.apply;
    ready = null;
    change();
    if (!work) return;
    tell("…", "");
    const { lines } = await work();
    tell(action.done(lines), "good");
  }));
  change();
}

async function logIn(credentials) {
  const result = byId("login-result");
  try {
    const { secret } = await post("login", credentials);
    sessionStorage.setItem(SECRET, secret);
    result.textContent = "";
  } catch (error) {
    result.textContent = error.message;
  }
  await learnSession();
}

form("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { password } = form("login").elements;
  const tried = logIn({ password: password.value });
  password.value = "";
  await tried;
});

byId("by-certificate").addEventListener("click", () => logIn({}));

byId("logout").addEventListener("click", async () => {
  await post("logout", {});
  sessionStorage.removeItem(SECRET);
  await learnSession();
});

main();
