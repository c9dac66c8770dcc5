// Arithmatex marks formulas, as \(...\) in a line and \[...\] on their own; KaTeX, which is part of the site, draws them.
document.querySelectorAll(".arithmatex").forEach((element) => {
  const text = element.textContent.trim();
  katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\["), throwOnError: false });
});
