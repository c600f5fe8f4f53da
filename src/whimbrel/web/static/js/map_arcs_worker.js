// Draws the arcs and the parcels on them, in a thread of its own: an animation in the page would make the page's thread
// work for each of sixty frames a second. Told by `map_arcs.js`: the canvas, its size, then the arcs.

const TRIP_MS = 1400;
const LEAST_MS = 30;

let ctx = null;
let size = { width: 1, height: 1, ratio: 1 };
let colors = { move: "#b45a09", bad: "#a92b22", surface: "#ffffff" };
let arcs = [];
let still = false;
let asked = false;
let drawn_ms = 0;

self.onmessage = ({ data }) => {
  if (data.canvas) ctx = data.canvas.getContext("2d");
  if (data.size) {
    size = data.size;
    ctx.canvas.width = Math.round(size.width * size.ratio);
    ctx.canvas.height = Math.round(size.height * size.ratio);
  }
  if (data.colors) colors = data.colors;
  if (data.arcs) arcs = data.arcs;
  if (data.still !== undefined) still = data.still;
  drawn_ms = 0;
  ask();
};

function ask() {
  if (asked) return;
  asked = true;
  requestAnimationFrame((now_ms) => {
    asked = false;
    if (now_ms - drawn_ms >= LEAST_MS) {
      drawn_ms = now_ms;
      draw();
    }
    if (!still && arcs.some((arc) => arc.running)) ask();
  });
}

function draw() {
  ctx.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
  ctx.clearRect(0, 0, size.width, size.height);
  const now_ms = performance.now();
  ctx.lineCap = "round";
  for (const arc of arcs) {
    ctx.strokeStyle = arc.good ? colors.move : colors.bad;
    ctx.lineWidth = 2.5;
    ctx.setLineDash(arc.running ? [] : [1, 6]);
    ctx.globalAlpha = arc.running ? 1 : 0.75;
    ctx.beginPath();
    ctx.moveTo(arc.x0, arc.y0);
    ctx.quadraticCurveTo(arc.cx, arc.cy, arc.x1, arc.y1);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.setLineDash([]);
    if (arc.running) parcel(arc, still ? 0.5 : smooth(((now_ms + arc.shift_ms) % TRIP_MS) / TRIP_MS));
  }
}

const smooth = (t) => t * t * (3 - 2 * t);

function parcel({ x0, y0, cx, cy, x1, y1 }, t) {
  const u = 1 - t;
  ctx.beginPath();
  ctx.arc(u * u * x0 + 2 * u * t * cx + t * t * x1, u * u * y0 + 2 * u * t * cy + t * t * y1, 6, 0, Math.PI * 2);
  ctx.fillStyle = colors.move;
  ctx.fill();
  ctx.lineWidth = 2.5;
  ctx.strokeStyle = colors.surface;
  ctx.stroke();
}
