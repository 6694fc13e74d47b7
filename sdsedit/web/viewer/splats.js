// A viewer of Gaussian splats in WebGL2: two scenes from one camera with a line between them, and a weight for each
// Gaussian shown as heat. It draws what it is given and asks nobody but the page's own server for anything.
//
// A file of N Gaussians has 33 N bytes, little-endian: N times 32 (position and scale as float32, RGBA as bytes, the
// unit quaternion wxyz as bytes, 128 q + 128), then N weights as bytes.
//
// A Gaussian is drawn as EWA splatting has it (Zwicker et al. 2001, as in arXiv:2308.04079): with W the rotation of the
// camera and J the Jacobian of the projection at the Gaussian's middle, its picture is a Gaussian of the covariance
//     S' = J W S W^T J^T + 0.3,   S = R diag(s)^2 R^T
// and the splats are blended from the farthest to the nearest. Axes are those of the files: x right, y down, z forward.

const VERTEX = `#version 300 es
precision highp float;
precision highp int;
uniform highp usampler2D data;
uniform mat4 view;
uniform vec2 focal, viewport;
uniform float heat;
in vec2 corner;
in uint index;
out vec4 tint;
out vec2 at;
vec3 glow(float w) {  // from a dim purple to yellow, as the heat-maps of pictures
  return w < 0.5 ? mix(vec3(0.24, 0.08, 0.42), vec3(0.87, 0.28, 0.41), 2.0 * w)
                 : mix(vec3(0.87, 0.28, 0.41), vec3(0.99, 0.91, 0.30), 2.0 * w - 1.0);
}
void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  ivec2 cell = ivec2(3 * int(index & 1023u), int(index >> 10));
  uvec4 a = texelFetch(data, cell, 0), b = texelFetch(data, cell + ivec2(1, 0), 0);
  uvec4 c = texelFetch(data, cell + ivec2(2, 0), 0);
  vec3 p = (view * vec4(uintBitsToFloat(a.xyz), 1.0)).xyz;
  if (p.z < 0.05) return;
  vec2 limit = 0.65 * viewport / focal;
  vec2 slope = clamp(p.xy / p.z, -limit, limit);
  mat3 w = transpose(mat3(view));  // its columns are the rows of W
  vec3 u = focal.x / p.z * (w[0] - slope.x * w[2]), v = focal.y / p.z * (w[1] - slope.y * w[2]);
  vec4 s = uintBitsToFloat(b);
  vec2 t = uintBitsToFloat(c.xy);
  mat3 sigma = mat3(s.x, s.y, s.z, s.y, s.w, t.x, s.z, t.x, t.y);
  float xx = dot(u, sigma * u) + 0.3, xy = dot(u, sigma * v), yy = dot(v, sigma * v) + 0.3;
  float middle = 0.5 * (xx + yy), radius = length(vec2(0.5 * (xx - yy), xy));
  float large = middle + radius, small = max(middle - radius, 0.1);
  vec2 axis = abs(xy) < 1e-6 ? (xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0)) : normalize(vec2(xy, large - xx));
  vec2 centre = focal * p.xy / p.z;
  if (any(greaterThan(abs(centre), 1.3 * viewport))) return;
  vec2 place = centre + corner.x * min(sqrt(2.0 * large), 1024.0) * axis
                      + corner.y * min(sqrt(2.0 * small), 1024.0) * vec2(axis.y, -axis.x);
  gl_Position = vec4(2.0 * place / viewport * vec2(1.0, -1.0), 0.0, 1.0);
  vec4 rgba = vec4(float(a.w & 255u), float((a.w >> 8) & 255u), float((a.w >> 16) & 255u), float(a.w >> 24)) / 255.0;
  float weight = float(c.z) / 255.0, grey = dot(rgba.rgb, vec3(0.3, 0.59, 0.11));
  vec3 warm = mix(vec3(0.35 * grey + 0.25), glow(weight) * (0.6 + 0.5 * grey), smoothstep(0.08, 0.45, weight));
  tint = vec4(mix(rgba.rgb, warm, heat), rgba.a);
  at = corner;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec4 tint;
in vec2 at;
out vec4 colour;
void main() {
  float power = -dot(at, at);
  if (power < -4.0) discard;
  float alpha = tint.a * exp(power);
  colour = vec4(tint.rgb * alpha, alpha);
}`;

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = (a) => { const n = Math.hypot(...a) || 1; return a.map((x) => x / n); };
const minus = (a, b) => a.map((x, k) => x - b[k]);

/** What the shader reads of a file: 3 cells of 4 whole numbers a Gaussian, 1024 Gaussians a row. */
function cells(bytes) {
  const count = bytes.byteLength / 33, floats = new Float32Array(bytes, 0, 8 * count);
  const small = new Uint8Array(bytes), rows = Math.max(1, Math.ceil(count / 1024));
  const out = new Uint32Array(rows * 1024 * 12), asFloat = new Float32Array(out.buffer);
  for (let k = 0; k < count; k++) {
    const f = 8 * k, b = 32 * k, o = 12 * k;
    for (let i = 0; i < 3; i++) asFloat[o + i] = floats[f + i];
    out[o + 3] = (small[b + 24] | (small[b + 25] << 8) | (small[b + 26] << 16) | (small[b + 27] << 24)) >>> 0;
    let [w, x, y, z] = [0, 1, 2, 3].map((i) => (small[b + 28 + i] - 128) / 128);
    const n = Math.hypot(w, x, y, z) || 1;
    w /= n; x /= n; y /= n; z /= n;
    const sx = floats[f + 3], sy = floats[f + 4], sz = floats[f + 5];
    const m = [
      sx * (1 - 2 * (y * y + z * z)), sy * 2 * (x * y - w * z), sz * 2 * (x * z + w * y),
      sx * 2 * (x * y + w * z), sy * (1 - 2 * (x * x + z * z)), sz * 2 * (y * z - w * x),
      sx * 2 * (x * z - w * y), sy * 2 * (y * z + w * x), sz * (1 - 2 * (x * x + y * y)),
    ];
    const s = (i, j) => m[3 * i] * m[3 * j] + m[3 * i + 1] * m[3 * j + 1] + m[3 * i + 2] * m[3 * j + 2];
    asFloat[o + 4] = s(0, 0); asFloat[o + 5] = s(0, 1); asFloat[o + 6] = s(0, 2); asFloat[o + 7] = s(1, 1);
    asFloat[o + 8] = s(1, 2); asFloat[o + 9] = s(2, 2);
    out[o + 10] = small[32 * count + k];
  }
  return { count, rows, cells: out, floats };
}

/** Numbers of the Gaussians from the farthest to the nearest: a counting sort over 65,536 depths. */
function sorted(scene, forward) {
  const { count, floats, order, depth, keys } = scene, starts = new Uint32Array(65537);
  let low = Infinity, high = -Infinity;
  for (let k = 0; k < count; k++) {
    const d = forward[0] * floats[8 * k] + forward[1] * floats[8 * k + 1] + forward[2] * floats[8 * k + 2];
    depth[k] = d;
    if (d < low) low = d;
    if (d > high) high = d;
  }
  const scale = 65535 / Math.max(high - low, 1e-12);
  for (let k = 0; k < count; k++) { keys[k] = (high - depth[k]) * scale; starts[keys[k] + 1]++; }
  for (let k = 0; k < 65536; k++) starts[k + 1] += starts[k];
  for (let k = 0; k < count; k++) order[starts[keys[k]]++] = k;
  return order;
}

class Scene {
  constructor(gl, bytes) {
    Object.assign(this, cells(bytes));
    this.order = new Uint32Array(this.count);
    this.depth = new Float32Array(this.count);
    this.keys = new Uint16Array(this.count);
    this.forward = null;
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    for (const what of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, what, gl.NEAREST);
    gl.texImage2D(
      gl.TEXTURE_2D, 0, gl.RGBA32UI, 3072, this.rows, 0, gl.RGBA_INTEGER, gl.UNSIGNED_INT, this.cells);
    this.buffer = gl.createBuffer();
  }
  free(gl) {
    gl.deleteTexture(this.texture);
    gl.deleteBuffer(this.buffer);
  }
}

class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: false, preserveDrawingBuffer: true }));
    if (!gl) throw new Error("no WebGL2");
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "corner");
    gl.bindAttribLocation(program, 1, "index");
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("its WebGL2 does not take the shaders");
    gl.useProgram(program);
    this.at = (name) => gl.getUniformLocation(program, name);
    const quad = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, quad);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-2, -2, 2, -2, -2, 2, 2, 2]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribDivisor(1, 1);
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.scenes = [];  // before, after
    this.line = 1;  // share of the picture's width that shows what was before
    this.heat = 0;
    this.turning = false;
    this.waiting = false;
  }
  show(files, camera) {
    for (const scene of this.scenes) scene.free(this.gl);
    this.scenes = files.map((bytes) => new Scene(this.gl, bytes));
    if (camera) this.start = camera;
    if (camera && (!this.known || this.known !== camera.scene)) {  // another scene; else the view stays as it is
      this.known = camera.scene;
      this.home();
    }
    this.draw();
  }
  home() {
    const { eye, centre, up } = this.start, away = minus(eye, centre);
    this.up = unit(up);
    const height = dot(away, this.up), flat = unit(away.map((x, k) => x - height * this.up[k]));
    this.across = [flat, cross(this.up, flat)];
    this.yaw = 0;
    this.distance = Math.hypot(...away);
    this.pitch = Math.asin(height / this.distance);
    this.draw();
  }
  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.min(Math.max(this.pitch + pitch, -1.45), 1.45);
    this.draw();
  }
  zoom(factor) {
    const usual = Math.hypot(...minus(this.start.eye, this.start.centre));
    this.distance = Math.min(Math.max(this.distance * factor, 0.15 * usual), 4 * usual);
    this.draw();
  }
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }
  paint() {
    const { gl, canvas } = this;
    const side = Math.round(Math.max(canvas.clientWidth, 1) * Math.min(window.devicePixelRatio || 1, 2));
    const height = Math.round(Math.max(canvas.clientHeight, 1) * Math.min(window.devicePixelRatio || 1, 2));
    if (canvas.width !== side || canvas.height !== height) { canvas.width = side; canvas.height = height; }
    gl.viewport(0, 0, side, height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.scenes.length || side < 2) return;
    const flat = Math.cos(this.pitch), around = [Math.cos(this.yaw) * flat, Math.sin(this.yaw) * flat];
    const away = [0, 1, 2].map((k) =>
      around[0] * this.across[0][k] + around[1] * this.across[1][k] + Math.sin(this.pitch) * this.up[k]);
    const eye = this.start.centre.map((x, k) => x + this.distance * away[k]);
    const forward = away.map((x) => -x), right = unit(cross(forward, this.up)), down = cross(forward, right);
    const view = new Float32Array(16);
    [right, down, forward].forEach((row, i) => {
      for (let k = 0; k < 3; k++) view[4 * k + i] = row[k];
      view[12 + i] = -dot(row, eye);
    });
    view[15] = 1;
    const focal = (0.5 * Math.min(side, height)) / Math.tan((this.start.fov * Math.PI) / 360);
    gl.uniformMatrix4fv(this.at("view"), false, view);
    gl.uniform2f(this.at("focal"), focal, focal);
    gl.uniform2f(this.at("viewport"), side, height);
    gl.uniform1f(this.at("heat"), this.heat);
    const cut = this.scenes.length > 1 ? Math.round(this.line * side) : side;
    gl.enable(gl.SCISSOR_TEST);
    this.scenes.forEach((scene, k) => {
      const [from, to] = k ? [cut, side] : [0, cut];
      if (to <= from) return;
      gl.scissor(from, 0, to - from, height);
      gl.bindTexture(gl.TEXTURE_2D, scene.texture);
      gl.bindBuffer(gl.ARRAY_BUFFER, scene.buffer);
      if (!scene.forward || dot(scene.forward, forward) < 0.9998) {
        gl.bufferData(gl.ARRAY_BUFFER, sorted(scene, forward), gl.DYNAMIC_DRAW);
        scene.forward = forward;
      }
      gl.vertexAttribIPointer(1, 1, gl.UNSIGNED_INT, 0, 0);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, scene.count);
    });
    if (this.turning) { this.yaw += 0.012; this.draw(); }
    this.drawn = (this.drawn || 0) + 1;
    canvas.dataset.frames = String(this.drawn);
  }
}

/** The widgets round a viewer: what `element`, a gr.HTML, holds, and what its value says. */
function mount(element, props, watch) {
  const find = (selector) => element.querySelector(selector);
  const canvas = find("canvas"), line = find(".line"), heat = find(".heat input"), said = find(".said");
  const state = (text, words) => { find(".splats").dataset.state = text; said.textContent = words || ""; };
  let viewer;
  try {
    viewer = new Viewer(canvas);
  } catch (error) {
    state("none", `This browser cannot draw scenes: ${error.message}. The film and the downloads show the result.`);
    return;
  }
  const pointers = new Map();
  let wheel = false;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.focus({ preventScroll: true });
  });
  canvas.addEventListener("pointermove", (event) => {
    const was = pointers.get(event.pointerId);
    if (!was || !viewer.scenes.length) return;
    const now = [event.clientX, event.clientY];
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      viewer.zoom(Math.hypot(...minus(was, other)) / Math.max(Math.hypot(...minus(now, other)), 1));
    } else {
      viewer.turn(-(now[0] - was[0]) * 0.009, (now[1] - was[1]) * 0.009);
    }
    pointers.set(event.pointerId, now);
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("focus", () => { wheel = true; });  // before that the wheel scrolls the page
  canvas.addEventListener("blur", () => { wheel = false; });
  canvas.addEventListener("wheel", (event) => {
    if (!wheel || !viewer.scenes.length) return;
    event.preventDefault();
    viewer.zoom(Math.exp(Math.min(Math.max(event.deltaY, -100), 100) * 0.002));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const acts = {
      ArrowLeft: () => viewer.turn(-0.12, 0), ArrowRight: () => viewer.turn(0.12, 0),
      ArrowUp: () => viewer.turn(0, 0.09), ArrowDown: () => viewer.turn(0, -0.09),
      "+": () => viewer.zoom(0.9), "=": () => viewer.zoom(0.9), "-": () => viewer.zoom(1.1), Home: () => viewer.home(),
    };
    if (!acts[event.key] || !viewer.scenes.length) return;
    event.preventDefault();
    acts[event.key]();
  });
  line.addEventListener("input", () => { viewer.line = line.value / 100; mark(); viewer.draw(); });
  heat.addEventListener("change", () => { viewer.heat = heat.checked ? 1 : 0; viewer.draw(); });
  find(".home").addEventListener("click", () => { if (viewer.start) viewer.home(); });
  find(".turn").addEventListener("click", (event) => {
    viewer.turning = !viewer.turning;
    event.currentTarget.setAttribute("aria-pressed", String(viewer.turning));
    viewer.draw();
  });
  new ResizeObserver(() => viewer.draw()).observe(canvas);
  const mark = () => { find(".edge").style.left = `${line.value}%`; };
  let asked = 0;
  async function load() {
    const value = props.value, mine = ++asked;
    if (!value || !value.files || !value.files.length) { state("empty", value ? value.said : ""); return; }
    state("loading", "The scene is on its way.");
    try {
      const files = await Promise.all(value.files.map(async (file) => {
        const answer = await fetch(file.url);
        if (!answer.ok) throw new Error(`the server says ${answer.status}`);
        return answer.arrayBuffer();
      }));
      if (mine !== asked) return;
      const two = files.length > 1;
      heat.checked = Boolean(value.heat);
      viewer.heat = value.heat ? 1 : 0;
      line.value = two ? 15 : 100;  // the result first
      viewer.line = line.value / 100;
      find(".compare").hidden = find(".edge").hidden = !two;
      find(".heat").hidden = !value.weights;
      mark();
      state("ready", value.said);
      canvas.setAttribute("aria-label", value.alt);
      viewer.show(files, value.camera);
      canvas.dataset.count = viewer.scenes.map((scene) => scene.count).join(" ");
    } catch (error) {
      if (mine === asked) state("failed", `The scene could not be shown (${error.message}); take it again.`);
    }
  }
  watch("value", load);
  load();
}
