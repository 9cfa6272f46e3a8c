"""What drift is measured on: prose that is in the public domain, and a worked problem after it.

English: the beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865). Chinese: that of
孔乙己 (鲁迅, 1919).
"""

__all__ = ["TEXTS"]

ENGLISH = """\
Alice was beginning to get very tired of sitting by her sister on the bank, and of having
nothing to do: once or twice she had peeped into the book her sister was reading, but it had no
pictures or conversations in it, "and what is the use of a book," thought Alice "without
pictures or conversations?" So she was considering in her own mind (as well as she could, for
the hot day made her feel very sleepy and stupid), whether the pleasure of making a daisy-chain
would be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit
with pink eyes ran close by her. There was nothing so very remarkable in that; nor did Alice
think it so very much out of the way to hear the Rabbit say to itself, "Oh dear! Oh dear! I
shall be late!"

Question: A shop sells pens in boxes of 12 for 9 dollars. A school needs 150 pens and buys whole
boxes only. How much does it pay, and how many pens are left over?

Answer: Let us first find how many boxes the school needs. 150 / 12 = 12.5, so 12 boxes are too
few and the school buys 13 boxes. They cost 13 * 9 = 117 dollars. In 13 boxes there are 13 * 12
= 156 pens, so 156 - 150 = 6 pens are left over. The answer is 117 dollars and 6 pens."""

CHINESE = """\
鲁镇的酒店的格局，是和别处不同的：都是当街一个曲尺形的大柜台，柜里面预备着热水，可以随时温酒。做
工的人，傍午傍晚散了工，每每花四文铜钱，买一碗酒，——这是二十多年前的事，现在每碗要涨到十文，——靠
柜外站着，热热的喝了休息；倘肯多花一文，便可以买一碟盐煮笋，或者茴香豆，做下酒物了，如果出到十几
文，那就能买一样荤菜，但这些顾客，多是短衣帮，大抵没有这样阔绰。只有穿长衫的，才踱进店面隔壁的房
子里，要酒要菜，慢慢地坐喝。

问题：一家商店的铅笔每盒 12 支，卖 9 元。学校需要 150 支铅笔，只能整盒购买。学校要付多少钱，还剩
下几支铅笔？

解答：先求学校需要多少盒。150 ÷ 12 = 12.5，所以 12 盒不够，要买 13 盒。13 盒一共 13 × 9 = 117 元
。13 盒里有 13 × 12 = 156 支铅笔，所以还剩下 156 - 150 = 6 支。答案是 117 元，剩下 6 支铅笔。"""


def _lines_joined(text: str, space: str) -> str:
    """The paragraphs without the ends of lines that only this file needs."""
    return "\n\n".join(each.replace("\n", space) for each in text.split("\n\n"))


TEXTS = {"English": _lines_joined(ENGLISH, " "), "Chinese": _lines_joined(CHINESE, "")}
