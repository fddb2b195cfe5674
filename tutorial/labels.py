"""The labels of the tutorial's pictures in Chinese, with the terms of the Chinese article."""

CHINESE = {
    # loop
    "the text so far": "目前的文本",
    "probability of the next token": "下一个词元的概率",
    # sampling
    "temperature {}": "温度 {}",
    "{} others": "其余 {} 个",
    "not truncated": "未截断",
    "truncated, renormalized": "截断后重新归一",
    "all others": "其余合计",
    # shift
    "inputs\nids[:-1]": "输入\nids[:-1]",
    "targets\nids[1:]": "目标\nids[1:]",
    "probability": "概率",
    "loss": "损失",
    "each position sees only itself and earlier tokens": "每个位置只看到自己和之前的词元",
    "loss = -ln(probability); mean over the whole sentence: {:.2f}": "损失 = -ln(概率)；整句的平均损失：{:.2f}",
    # loss
    "a blind guess: ln({}) = {:.2f}": "盲猜：ln({}) = {:.2f}",
    "kept: step {:g}, {:.2f}": "保留第 {:g} 步：{:.2f}",
    "step": "训练步数",
    "loss (nats per token)": "损失（nat / 词元）",
    "training text (with dropout)": "训练集（含 dropout）",
    "held-out text": "验证集",
    "held-out text, averaged weights": "验证集（平均权重）",
    # parts
    "a blind guess": "盲猜",
    "counts of tokens": "词元计数",
    "counts of pairs: a bigram table": "词元对计数：二元组表",
    "embeddings instead": "改用嵌入",
    "+ positions": "+ 位置嵌入",
    "+ attention, one head": "+ 注意力，单头",
    "four heads instead": "改为四个头",
    "+ feed-forward network": "+ 前馈网络",
    "four blocks instead of one": "一个块改为四个",
    "+ weight tying: GPT-2": "+ 权重共享：即 GPT-2",
    "... without positions": "……去掉位置嵌入",
    "... without layer norms": "……去掉层归一化",
    "... without residuals": "……去掉残差连接",
    "counted": "计数",
    "trained": "训练",
    "trained without one part": "去掉一个部分后训练",
    # bpe
    "one symbol per byte": "每个字节一个符号",
    "merge number {}": "第 {} 号合并",
    "· is the space before the word, written Ġ in vocab.bpe": "· 是单词前的空格，在 vocab.bpe 中写作 Ġ",
    # checkpoint
    "model.ckpt.data: {:,} numbers of 4 bytes each, end to end": "model.ckpt.data：{:,} 个数，各 4 字节，首尾相接",
    "one block: {:,} numbers": "一个块：{:,} 个数",
    "attention": "注意力",
    "feed-forward network": "前馈网络",
    "thin strip: all biases and layer norms, {:.1%}; in the file, they lie between the matrices": (
        "细条：全部偏置和层归一化，占 {:.1%}；在文件中，它们位于各矩阵之间"
    ),
    "wte: one row for each of {:,} tokens; wpe: one for each of {} positions": (
        "wte：{:,} 个词元各一行；wpe：{} 个位置各一行"
    ),
    # layers
    "each output: a weighted sum of all, plus b": "每个结果：全部输入的加权和，再加 b",
    "elementwise; dashed: relu": "逐个计算；虚线：relu",
    "all positive, and the sum is 1": "全为正数，总和为 1",
    "mean 0, variance 1 (g = 1, b = 0)": "均值 0，方差 1（g = 1，b = 0）",
    # architecture
    "embeddings": "嵌入",
    "block × n_layer": "块 × n_layer",
    "the same layers, each\nwith its own parameters": "结构相同，\n参数各自不同",
    "final layer norm": "最后的层归一化",
    "projection onto the vocabulary": "投影到词表",
    "residual stream": "残差流",
    "multi-head attention": "多头注意力",
    "mha: tokens look at each other": "mha：词元之间互相查看",
    "ffn: each token by itself": "ffn：每个词元单独处理",
    "layer norm": "层归一化",
    # embeddings
    "positions: every eighth row of wpe": "位置：wpe 每八行取一行",
    "tokens: rows of wte": "词元：wte 的行",
    "cosine of two rows: 1 similar, 0 unrelated, -1 opposite": "两行的余弦：1 相同，0 无关，-1 相反",
    # query
    "query": "查询",
    "keys": "键",
    "score\nq @ k / √d": "分数\nq @ k / √d",
    "weight\nsoftmax": "权重\nsoftmax",
    "value\nfirst 4 of {} numbers": "值\n{} 个数中的前 4 个",
    "sum = {:.0f}": "总和 = {:.0f}",
    '{} takes {:.2f} times the value of "{}", and less of every other value': (
        "{} 得到 {:.2f} 份“{}”的值，其他值各占的更少"
    ),
    # mask
    "scores: q @ k.T / √d": "分数：q @ k.T / √d",
    "+ mask": "+ 因果掩码",
    "softmax(scores), no mask": "softmax(分数)，无掩码",
    "softmax(scores + mask)": "softmax(分数 + 掩码)",
    "weights; row: query token, column: key token": "权重；行：查询的词元，列：被查看的词元",
    # split
    "c_attn gives each token {} numbers: q, k, v of {} heads, {} each": (
        "c_attn 给每个词元 {} 个数：{} 个头的 q、k、v，各 {}"
    ),
    "right: a head gets its own q, k, v": "正确：每个头得到自己的 q、k、v",
    "wrong: same shapes, different contents": "错误：形状相同，内容不对",
    "as {}": "作为 {}",
    "head {}": "头 {}",
    "each head attends separately; the results are concatenated": "每个头各自计算注意力，结果并排拼接",
    # heads
    "block {}, head {}: ": "块 {}，头 {}：",
    "the previous three tokens": "前三个词元",
    "the ends of lines": "行末",
    "the speaker's name": "说话人的名字",
    "almost uniform": "几乎一视同仁",
    "{:.0%} of the weight (uniform: {:.0%})": "占权重的 {:.0%}（均匀分配时为 {:.0%}）",
    "every weight is within {:.2f} of uniform": "各权重与均匀分配相差至多 {:.2f}",
    # cache
    "without a cache": "没有缓存",
    "with a cache": "有缓存",
    "tokens computed: {}": "计算的词元：{}",
    "decode {}": "解码 {}",
    "prefill": "预填充",
    "goes through the model": "经过模型计算",
    "k and v come from the cache": "从缓存读取它的 k 和 v",
    "0 to {}: the prompt, {}; green: the output, which is the next input": (
        "0 到 {}：提示 {}；绿色：输出的词元，下一步的输入"
    ),
    # quantization
    "{} bits: error up to {:.4f}": "{} 位：误差至多 {:.4f}",
    "weight": "权重",
    "stored value": "保留的值",
    "64 weights that share a scale": "共用一个缩放系数的 64 个权重",
    "all values that can be stored": "所有能保留的值",
}
