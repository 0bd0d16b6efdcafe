// A QR code for a text: `POST` the text, or `GET /?text=...`; the reply is an SVG picture.
import qrcode from "qrcode-generator";

// UTF-8, not the library's default of one byte per character.
qrcode.stringToBytes = (text) => Array.from(new TextEncoder().encode(text));

const BORDER = 4; // modules of light around the code, ISO/IEC 18004 §9.1

/** The smallest code that holds the text, error correction level M. */
function draw(text) {
  const code = qrcode(0, "M");
  code.addData(text);
  code.make();
  const count = code.getModuleCount();
  let path = "";
  for (let row = 0; row < count; row++) {
    for (let column = 0; column < count; column++) {
      if (code.isDark(row, column)) path += `M${column + BORDER} ${row + BORDER}h1v1h-1z`;
    }
  }
  const size = count + 2 * BORDER;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size} ${size}" width="${size * 8}" height="${size * 8}">` +
    `<path fill="#fff" d="M0 0h${size}v${size}H0z"/><path d="${path}"/></svg>\n`
  );
}

async function answer(request) {
  const text = request.method === "POST" ? await request.text() : new URL(request.url).searchParams.get("text");
  if (!text) {
    return new Response("POST a text, or GET /?text=...\n", { status: 400 });
  }
  try {
    return new Response(draw(text.trimEnd()), { headers: { "content-type": "image/svg+xml" } });
  } catch (error) {
    return new Response(`${error}\n`, { status: 413 }); // more than 2331 bytes
  }
}

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
