"""Word pools of the question generator."""

# Real words for letter counting; spliced into new ones as well, so that letters follow naturally.
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
apples balls beads books buttons candles cards coins cookies cups eggs flowers keys kites lemons
marbles muffins nuts oranges pears pencils pens plates plums roses seeds shells spoons stamps stars
stickers stones toys tulips
""".split()
BOXES = "bags baskets boxes jars packs trays".split()
COLORS = "red blue green yellow black white brown pink".split()

ANIMALS = """
bear camel cat cow crow deer dog duck fox frog goat goose horse lion mouse owl pig rabbit sheep
snail tiger turtle whale wolf
""".split()

# (the more of it, its superlative, the less of it, its superlative, plain form, fits animals)
SCALES = (
    ("taller", "tallest", "shorter", "shortest", "tall", False),
    ("older", "oldest", "younger", "youngest", "old", False),
    ("faster", "fastest", "slower", "slowest", "fast", True),
    ("heavier", "heaviest", "lighter", "lightest", "heavy", True),
    ("bigger", "biggest", "smaller", "smallest", "big", True),
    ("richer", "richest", "poorer", "poorest", "rich", False),
    ("stronger", "strongest", "weaker", "weakest", "strong", True),
)
ORDINALS = ("", "second ", "third ", "fourth ", "fifth ")
