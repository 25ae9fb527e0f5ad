/* How search ranks pages: what a reader asks for is first in guides, then in the reference */
const FOLDERS = {howto: 12, tutorials: 10, explain: 8, commands: 6, paper: 4};
const PAGES = {"paper/finder": 6, "explain/glossary": 3};
var Scorer = {
  score: ([page, title, anchor, description, score]) => score + (FOLDERS[page.split("/")[0]] || 0) + (PAGES[page] || 0) - (anchor ? 4 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 40, partialTitle: 7, term: 5, partialTerm: 2,
};
