// The web's runtime under the name that transformers.js imports in Node.
module.exports = require("onnxruntime-web");
