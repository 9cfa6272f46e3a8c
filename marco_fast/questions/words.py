"""The words that questions are made of, in English and in Chinese."""

from typing import NamedTuple

# Real words to count letters in. New words are spliced of two of them, so that their letters still
# follow one another as in real words.
WORDS = """
able about above accident account acorn across action active actor address adventure afternoon
airplane album alligator almond alphabet amber anchor angel animal answer apple apricot april arrow
artist asparagus attic august aunt autumn avocado award bakery balcony balloon bamboo banana
bandage banner barrel basket battery beach beaver bedroom beetle belief bicycle birthday biscuit
blackberry blanket blossom blueberry bottle bottom bracelet branch bread breakfast breeze brick
bridge broccoli brother bubble bucket buffalo building bundle butter butterfly button cabbage cabin
cactus camera candle canyon caramel carpet carrot castle category cathedral ceiling celery cellar
century cereal chair chapter cheese cherry chestnut chicken chimney chocolate cinnamon circle city
classroom clock cloud coconut coffee collar color committee compass computer concert cookie copper
corner cotton cottage cousin cranberry crayon cricket crocodile crystal cucumber culture cupboard
curtain cushion daisy daughter december decision desert diamond dictionary difference dinner
dinosaur distance doctor dolphin donkey dragon drawer dream eagle earring earth eclipse education
elephant elevator emerald engine envelope eraser evening example expression fabric factory family
feather february festival fiddle finger firefly flamingo flower football forest fountain friend
furniture gallery garage garden garlic gentle giraffe glacier glitter goose gorilla grammar grape
grasshopper gravity guitar hammer hamster happiness harbor harvest hazelnut hedgehog helicopter
history holiday honey horizon hospital hurricane iceberg illness imagine insect instrument island
ivory jacket jaguar january jelly jewel journey judge jungle kangaroo kettle keyboard kitchen
kitten knowledge ladder lantern laughter laundry lavender leather legend lemon leopard letter
lettuce library lighthouse lily lobster machine magazine magnet mammoth mango marble market
mattress meadow medicine melody message meteor mirror mississippi mistake monkey morning mosquito
mountain muffin museum mushroom musician mustard necklace needle neighbor nephew newspaper notebook
november number oatmeal ocean october office onion orange orchard orchestra ostrich oyster package
paddle painter palace pancake panther paper parade parrot passenger peach peanut pebble pelican
pencil penguin pepper pharmacy picture pillow pineapple pirate planet plastic pocket possession
potato present pressure princess problem professor promise pumpkin puppet purple puzzle pyramid
quarter question rabbit raccoon railroad rainbow raspberry recipe refrigerator reindeer restaurant
ribbon river rocket rooster sailor salad salmon sandwich satellite saturday scarecrow school
science scissors scorpion season secret september shadow shampoo shelter shoulder silver sister
skeleton slipper snowflake soccer soldier spaghetti sparrow spider spinach squirrel stadium station
strawberry street success sugar summer sunflower surprise sweater swimmer symphony table teacher
teapot telephone tennessee terrace theater thunder ticket tiger tissue tomato tomorrow tooth
tractor traffic treasure triangle trumpet tulip tunnel turkey turtle umbrella uncle universe
vacation valley vanilla vegetable velvet village violin volcano waffle walnut walrus watermelon
weather wednesday whisper whistle willow window winter wizard wonderful yellow yesterday yogurt
zebra zipper zucchini
""".split()

NAMES_SHE = """
Ada Alice Amy Anna Bella Carla Clara Daisy Dora Ella Emma Eva Fiona Grace Hanna Ida Iris Jane
Julia Kate Lena Lily Lucy Maria Mia Nina Nora Olga Paula Rosa Ruth Sara Sofia Tina Vera Zoe
""".split()
NAMES_HE = """
Adam Alan Ben Bob Carl Cody Dan David Eric Felix Finn Frank Gus Hugo Ivan Jack John Karl Leo Liam
Luke Mark Max Nick Noah Oscar Otto Paul Peter Ray Rob Sam Simon Theo Tom Will
""".split()

OBJECTS = """
apples balls beads books buttons candles cards coins cookies cups eggs keys kites lemons
marbles muffins nuts oranges pears pencils pens plates plums roses seeds shells spoons stamps stars
stickers stones tulips
""".split()
BOXES = "bags baskets boxes jars packs trays".split()
COLORS = "red blue green yellow black white brown pink".split()

ANIMALS = """
bear camel cat cow crow deer dog duck fox frog goat goose horse lion mouse owl pig rabbit sheep
snail tiger turtle whale wolf
""".split()


class Scale(NamedTuple):
    """Words of a comparison; Chinese has one word for a comparative and its superlative.

    `fits_animals` is False for what people alone are compared by.
    """

    more: str
    most: str
    less: str
    least: str
    adjective: str
    fits_animals: bool


SCALES = (
    Scale("taller", "tallest", "shorter", "shortest", "tall", False),
    Scale("older", "oldest", "younger", "youngest", "old", False),
    Scale("faster", "fastest", "slower", "slowest", "fast", True),
    Scale("heavier", "heaviest", "lighter", "lightest", "heavy", True),
    Scale("bigger", "biggest", "smaller", "smallest", "big", True),
    Scale("richer", "richest", "poorer", "poorest", "rich", False),
    Scale("stronger", "strongest", "weaker", "weakest", "strong", True),
)
ORDINALS = ("", "second ", "third ", "fourth ", "fifth ")

# Invented kinds: whatever can be said about them follows from the text of the question alone.
KINDS = """
blick borp dask drim fep fim glim gorf hib jov kel lorp mib nard molp pell quib rond sarn tove
tulb tulm vark wug yim zib zorn
""".split()
CITIES = "Berlin Cairo Delhi Lima London Madrid Oslo Paris Rome Tokyo".split()
PLACES = "bank bakery cafe library museum office pool school shop zoo".split()
BELONGINGS = "bag ball bike book box car chair coat cup door hat kite lamp table".split()

ZH_NAMES_SHE = "小红 小丽 小芳 小燕 小雪 小静 小梅 小兰 小玲 小雨 小月 小云".split()
ZH_NAMES_HE = "小明 小刚 小华 小强 小军 小龙 小宇 小杰 小勇 小文 小东 小伟".split()
# (measure word, thing)
ZH_OBJECTS = tuple(
    (pair[0], pair[1:])
    for pair in """
个苹果 本书 支铅笔 张卡片 颗糖 个球 枚硬币 朵花 块石头 个杯子 个鸡蛋 个橙子 张邮票
把钥匙 个贝壳
""".split()
)
ZH_ANIMALS = "猫 狗 马 牛 羊 猪 鸡 鸭 鹅 熊 虎 狼 象 猴 兔 鼠".split()
ZH_COLORS = "红色 蓝色 绿色 黄色 黑色 白色".split()
ZH_CITIES = "北京 上海 广州 杭州 南京 西安".split()
ZH_PLACES = "商店 学校 银行 公园 书店 医院".split()
ZH_BELONGINGS = "书包 盒子 椅子 桌子 帽子 车子 杯子 门".split()
ZH_SCALES = tuple(
    Scale(more, more, less, less, more, True)
    for more, less in (("高", "矮"), ("重", "轻"), ("快", "慢"), ("大", "小"))
)
ZH_NUMERALS = "最 第二 第三 第四 第五".split()
