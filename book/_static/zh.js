// Chinese is written without spaces: split a query into the longest words that the index of the search holds.
var splitQuery = (query) => {
  const known = (word) => word in Search._index.terms || word in Search._index.titleterms;
  const words = (run) => {
    const found = [];
    for (let start = 0; start < run.length; ) {
      let end = run.length;
      while (end > start + 1 && !known(run.slice(start, end))) end -= 1;
      if (end > start + 1) found.push(run.slice(start, end)); // single characters are not in the index
      start = end;
    }
    return found.length ? found : [run];
  };
  return query
    .split(/[^\p{Letter}\p{Number}_]+|(\p{Script=Han}+)/u)
    .filter((part) => part)
    .flatMap((part) => (/\p{Script=Han}/u.test(part) ? words(part) : [part]));
};

// The labels that the theme leaves in English.
document.addEventListener("DOMContentLoaded", () => {
  const words = {
    "Color mode": "配色模式",
    "Link to this code": "此代码的链接",
    "Link to this definition": "此定义的链接",
    "Link to this equation": "此公式的链接",
    "Link to this heading": "此标题的链接",
    "Link to this image": "此图的链接",
    "Link to this table": "此表的链接",
    "Link to this term": "此术语的链接",
    "Main": "主导航",
    "Page": "本页导航",
    "Toggle hidden content": "显示或隐藏内容",
    "Toggle primary sidebar": "显示或隐藏目录",
    "Toggle secondary sidebar": "显示或隐藏本页目录",
    "列印成 PDF": "打印成 PDF",
  };
  for (const name of ["title", "aria-label", "data-bs-title", "data-bs-original-title"]) {
    document.querySelectorAll(`[${name}]`).forEach((e) => {
      const word = words[e.getAttribute(name)];
      if (word) e.setAttribute(name, word);
    });
  }
});
