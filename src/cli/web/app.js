"use strict";
// Shows what the stream tells. Texts are set as text, never as HTML.

const byId = (id) => document.getElementById(id);
const dash = (value) => (value === null || value === undefined || value === "" ? "-" : String(value));
const number = (value) => (value === null || value === undefined ? "-" : value.toLocaleString("en"));
const HISTORY_MS = 10000;

function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${Math.floor((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

// The time, with the day if that is not today.
function moment(seconds) {
  const at = new Date(seconds * 1000);
  return at.toDateString() === new Date().toDateString() ? at.toLocaleTimeString() : at.toLocaleString();
}

function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

function bits(value) {
  let unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"][unit]}`;
}

// Each cell is a text, or a pair of a text and a class.
function table(id, headers, rows) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of headers) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = name;
    head.append(th);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const tr = body.insertRow();
    for (const cell of row) {
      const [text, style] = Array.isArray(cell) ? cell : [cell, ""];
      const td = tr.insertCell();
      td.textContent = text;
      td.className = style;
    }
  }
  const none = document.createElement("p");
  none.textContent = "none";
  byId(id).replaceChildren(rows.length ? table : none);
}

const tone = (good, yes, no) => [good ? yes : no, good ? "good" : "bad"];

function showHealth(status) {
  const health = status.health;
  const element = byId("health");
  const what = health.troubles.length
    ? health.troubles.map((trouble) => `${trouble.reason} (${duration(trouble.since)})`).join("; ")
    : `good for ${duration(health.since)}`;
  element.textContent = (status.maintenance ? "MAINTENANCE: " : "") + what;
  element.className = status.maintenance ? "bad" : health.state;
  byId("node").textContent = `${status.node} · tandemgw ${status.version} · up ${duration(status.uptime_s)}`;
  document.title = `${status.node}: ${health.state}`;
}

function showUnits(status) {
  // What all groups have alike.
  const common = (of) => {
    const values = new Set(status.groups.map(of));
    return values.size === 1 ? [...values][0] : null;
  };
  const own = [
    status.node, dash(common((group) => group.role)), dash(common((group) => group.priority)),
    ["this unit", "good"], status.monitored ? `${status.monitored.up} of ${status.monitored.all}` : "-",
    duration(status.uptime_s), status.version, dash(status.config?.checksum), "-", "-",
  ];
  const peers = status.peers.map((peer) => [
    peer.name, dash(peer.role), dash(peer.priority),
    peer.maintenance ? ["MAINTENANCE", "bad"] : tone(peer.connected, peer.in_sync ? "in sync" : "not in sync", "not connected"),
    dash(peer.ports_up), peer.uptime_s === null ? "-" : duration(peer.uptime_s), dash(peer.version),
    peer.config?.equal === false ? ["DIFFERS", "bad"] : dash(peer.config?.checksum),
    peer.connected ? `${number(peer.lag.sequence_gap)} changes, ${peer.lag.oldest_unacked_ms} ms` : "-",
    number(peer.lag.would_be_lost),
  ]);
  const headers = ["Unit", "Role", "Priority", "State", "Ports up", "Uptime", "Version", "Config", "Lag", "Would be lost"];
  table("units", headers, [own, ...peers]);
}

function showTables(data) {
  const status = data.status;
  table("groups", ["Group", "Role here", "Primary", "Term", "Ready", "Since"], status.groups.map((group) => [
    group.name, group.role, dash(group.primary), group.term, tone(group.ready, "ready", "not ready"), duration(group.since),
  ]));
  table("links", ["To", "Local", "Remote", "State", "RTT", "Carries"], status.peers.flatMap((peer) =>
    peer.links.map((link) => [
      peer.name, dash(link.local), dash(link.remote), tone(link.up, "up", "DOWN"),
      link.rtt_us === null ? "-" : `${link.rtt_us} µs`, link.carries_sync ? "sessions" : "-",
    ])));
  table("ports", ["Port", "Interface", "State", "In", "Out", "Targets"], status.ports.map((port) => [
    port.name, port.interface, tone(port.up && !port.fault, "up", port.fault ?? "DOWN"),
    bytes(port.in.bytes), bytes(port.out.bytes),
    (port.targets ?? []).map((target) => `${target.server} ${target.state ?? "unknown"}`).join(", ") || "-",
  ]));
  table("hosts", ["Host", "Sessions", "Half-open", "Ports"], data.hosts.map((host) => [
    host.source, number(host.sessions), number(host.half_open), number(host.ports),
  ]));
  table("policies", ["Policy", "Action", "Hits", "Sessions", "Bytes", "Last hit"], data.policies.map((policy) => [
    policy.name ?? "(no policy matches)", policy.action, number(policy.hits), number(policy.sessions), bytes(policy.bytes),
    policy.last_hit_s === null ? "-" : `${duration(policy.last_hit_s)} ago`,
  ]));
  const drops = Object.entries(status.counters.dropped).sort((a, b) => b[1] - a[1]);
  table("drops", ["Reason", "Packets"], drops.map(([reason, count]) => [reason, number(count)]));
  table("events", ["When", "Event", "What"], data.events.map((event) => [
    moment(event.at), [event.id, event.severity],
    event.why ? `${event.what} (${event.why})` : event.what,
  ]));
}

let before = null;

// What passes now, from two looks.
function showTraffic(status) {
  const sessions = status.sessions;
  byId("sessions").textContent =
    `${number(sessions.total)} of ${number(sessions.max)} sessions: tcp ${number(sessions.tcp)}, udp ${number(sessions.udp)}, icmp ${number(sessions.icmp)}, other ${number(sessions.other)}`;
  const now = { at: Date.now(), packets: status.counters.forwarded, bytes: status.counters.bytes };
  const passed = before === null ? 0 : now.at - before.at;
  if (before !== null && passed < 900) return;
  if (before !== null && now.packets >= before.packets) {
    const rate = (of) => ((now[of] - before[of]) * 1000) / passed;
    byId("rate").textContent = `${bits(rate("bytes") * 8)}, ${number(Math.round(rate("packets")))} packets/s now;`;
  }
  before = now;
}

// A graph from zero to the largest of the values; a gap where there is none.
function draw(id, values) {
  const canvas = byId(id);
  const context = canvas.getContext("2d");
  const top = Math.max(1, ...values);
  const x = (index) => (index * canvas.width) / (values.length - 1);
  const y = (value) => canvas.height - 2 - (value / top) * (canvas.height - 4);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
  context.lineWidth = 2;
  values.forEach((value, index) => {
    if (value === null) return;
    const from = index > 0 && values[index - 1] !== null ? index - 1 : index;
    context.globalAlpha = 0.15;
    context.fillRect(x(from), y(value), x(index) - x(from), canvas.height - y(value));
    context.globalAlpha = 1;
    context.beginPath();
    context.moveTo(x(from) - (from === index ? 1 : 0), y(values[from]));
    context.lineTo(x(index), y(value));
    context.stroke();
  });
}

let historyDue = 0;

// The last hour, which the process keeps that serves this page.
async function showHistory() {
  if (Date.now() < historyDue) return;
  historyDue = Date.now() + HISTORY_MS;
  const hour = await post("act", "history");
  const most = (values) => Math.max(0, ...values);
  draw("graph-bits", hour.bits);
  draw("graph-sessions", hour.sessions);
  byId("most-bits").textContent = `throughput, at most ${bits(most(hour.bits))} and ${number(most(hour.packets))} packets/s`;
  byId("most-sessions").textContent = `sessions, at most ${number(most(hour.sessions))}`;
}

function lose(why) {
  byId("health").textContent = why;
  byId("health").className = "critical";
  document.title = "tandemgw: no answer";
}

function show(data) {
  if (data.error) {
    lose(data.error);
    return;
  }
  showHealth(data.status);
  showUnits(data.status);
  showTables(data);
  showTraffic(data.status);
  offer(data.status);
  // It is asked for again.
  showHistory().catch(() => {});
}

// Server-sent events, with the secret of the session in a header: an EventSource can't send one.
async function follow() {
  const answer = await fetch("stream", { headers: credentials() });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const message of messages) {
      const data = message.split("\n").find((line) => line.startsWith("data: "));
      if (data) show(JSON.parse(data.slice(6)));
    }
  }
}

const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));

async function main() {
  for (;;) {
    try {
      if (await learnSession()) await follow();
    } catch {
      lose("tandemgw web does not answer");
    }
    await pause(1000);
  }
}
