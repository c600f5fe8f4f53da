// Draws the users, in a thread of its own. Told by `map_users.js`: the canvas, its size, colours, then scenes in metres.

const DOT = 2.6;

let ctx = null;
let size = { width: 1, height: 1, ratio: 1 };
let theme = null;
let scene = null;

self.onmessage = ({ data }) => {
  if (data.canvas) ctx = data.canvas.getContext("2d");
  if (data.size) {
    size = data.size;
    ctx.canvas.width = Math.round(size.width * size.ratio);
    ctx.canvas.height = Math.round(size.height * size.ratio);
  }
  if (data.theme) theme = data.theme;
  if (data.scene) scene = data.scene;
  if (theme && scene) draw();
};

const px = (x) => (x - scene.view.x) * scene.view.scale + scene.view.width / 2;
const py = (y) => (scene.view.y - y) * scene.view.scale + scene.view.height / 2;

function draw() {
  ctx.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
  ctx.clearRect(0, 0, size.width, size.height);
  for (const one of scene.ways) way(one);
  if (scene.chosen) behind(scene.chosen);
  dots(scene.many);
  for (const one of scene.names) name(one);
}

/** A thousand dots are three shapes: one of each colour. A few are larger and have an edge. */
function dots(many) {
  const { spots } = scene;
  const shapes = [new Path2D(), new Path2D(), new Path2D()];
  for (let i = 0; i < spots.length; i += 3) {
    const x = px(spots[i]);
    const y = py(spots[i + 1]);
    if (x < -10 || y < -10 || x > size.width + 10 || y > size.height + 10) continue;
    const kind = spots[i + 2];
    const radius = many ? DOT : kind === 1 ? 6 : 5;
    shapes[kind].moveTo(x + radius, y);
    shapes[kind].arc(x, y, radius, 0, Math.PI * 2);
  }
  for (const [kind, color] of [[2, theme.lost], [0, theme.user], [1, theme.move]]) {
    ctx.fillStyle = color;
    ctx.fill(shapes[kind]);
    if (many) continue;
    ctx.lineWidth = 2;
    ctx.strokeStyle = theme.surface;
    ctx.stroke(shapes[kind]);
  }
}

function behind({ x, y, station, node }) {
  if (station) line(px(x), py(y), px(station.x), py(station.y), theme.station, [2, 3]);
  if (node) line(px(x), py(y), px(node.x), py(node.y) - node.lift, theme.node, [6, 4]);
  ctx.beginPath();
  ctx.arc(px(x), py(y), 11, 0, Math.PI * 2);
  ctx.strokeStyle = theme.accent;
  ctx.lineWidth = 2;
  ctx.stroke();
}

function way({ points, alpha }) {
  ctx.beginPath();
  for (let i = 0; i < points.length; i += 2) {
    if (i) ctx.lineTo(px(points[i]), py(points[i + 1]));
    else ctx.moveTo(px(points[i]), py(points[i + 1]));
  }
  ctx.globalAlpha = alpha * 0.6;
  ctx.strokeStyle = theme.user;
  ctx.lineWidth = 2;
  ctx.setLineDash([]);
  ctx.stroke();
  ctx.globalAlpha = 1;
}

function line(x0, y0, x1, y1, color, dash) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.setLineDash(dash);
  ctx.lineWidth = 1.4;
  ctx.strokeStyle = color;
  ctx.stroke();
  ctx.setLineDash([]);
}

function name({ words, x, y, strong }) {
  ctx.font = `${strong ? 600 : 500} 12px ${theme.font}`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3.5;
  ctx.lineJoin = "round";
  ctx.strokeStyle = theme.sunken;
  ctx.strokeText(words, px(x), py(y) + 18);
  ctx.fillStyle = theme.ink;
  ctx.fillText(words, px(x), py(y) + 18);
}
